
=head1 NAME

Possync::Content - what a database says, whatever its keys are

=head1 SYNOPSIS

  my $content = Possync::Content->new($node, $dbname,
	  business => { 'public.album' => [ 'title', 'artist_id' ], ... },
	  surrogate => { 'public.album' => ['album_id'], ... });

  $content->rows;           # { 'public.album' => { business key => content } }
  Possync::Content::differences($master, $till, \%own);

=head1 DESCRIPTION

Reads tables whole.  Every foreign key is replaced by the business key of the
row it points to, which in turn may contain foreign keys; surrogate keys are
left out.  What remains must be the same on both sides.  Tables and foreign
keys come from the catalog; tables are named as format('%I.%I') does.

Columns whose names match ignore are not looked at, and values are compared in
the types of another content, like.

Business keys must tell all rows of a table apart; rows that share one are
numbered, so that the numbers of such rows are compared, too.

=cut

package Possync::Content;

use strict;
use warnings FATAL => 'all';

use Digest::MD5 qw(md5_hex);

# Tables with their columns: generated or not, in types as they are written.
my $columns = <<'EOC';
SELECT format('%I.%I', n.nspname, c.relname), a.attname,
	format_type(a.atttypid, a.atttypmod), a.attgenerated <> '',
	EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid AND c.relkind = 'r')
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.oid >= 16384
  AND n.nspname NOT IN ('information_schema', 'pg_catalog')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
				  AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, a.attname
EOC

my $foreign_keys = <<'EOC';
SELECT format('%I.%I', n.nspname, c.relname), format('%I.%I', rn.nspname, r.relname),
	(SELECT string_agg(a.attname || chr(2) || b.attname, chr(3) ORDER BY a.attname COLLATE "C", b.attname COLLATE "C")
	 FROM unnest(f.conkey, f.confkey) k (l, r)
	 JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.l
	 JOIN pg_attribute b ON b.attrelid = f.confrelid AND b.attnum = k.r) AS pairs
FROM pg_constraint f
JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class r ON r.oid = f.confrelid
JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE f.contype = 'f' AND f.conparentid = 0 AND NOT c.relispartition
ORDER BY 1, 3, 2
EOC

sub lines
{
	my ($node, $dbname, $query) = @_;
	my ($status, $out, $err) = $node->psql($dbname, "COPY ($query) TO STDOUT");
	die "$query: $err" if $status != 0;
	return map { [ split /\t/, $_, -1 ] } split /\n/, $out;
}

sub identifier
{
	my ($name) = @_;
	$name =~ s/"/""/g;
	return qq{"$name"};
}

sub new
{
	my ($class, $node, $dbname, %options) = @_;
	my $self = bless { business => {}, surrogate => {}, %options, keys => {}, found => {} }, $class;

	for (lines($node, $dbname, $columns))
	{
		my ($table, $column, $type, $generated, $inherited) = @$_;
		next if defined $self->{ignore} && $column =~ $self->{ignore};
		push @{ $self->{columns}{$table} }, $column;
		$self->{types}{$table}{$column} = $type;
		$self->{generated}{$table}{$column} = 1 if $generated eq 't';
		$self->{only}{$table} = $inherited eq 't' ? 'ONLY ' : '';
	}
	for (lines($node, $dbname, $foreign_keys))
	{
		my ($table, $parent, $pairs) = @$_;
		my @pairs = map { [ split /\x02/ ] } split /\x03/, $pairs;
		push @{ $self->{references}{$table} },
		  { parent => $parent, columns => [ map { $_->[0] } @pairs ],
			referenced => [ map { $_->[1] } @pairs ] };
	}
	$self->read($node, $dbname, $_) for $self->tables;
	return $self;
}

sub tables
{
	my ($self) = @_;
	return sort grep { $self->{business}{$_} } keys %{ $self->{columns} };
}

# Reads a table into a list of rows by column.
sub read
{
	my ($self, $node, $dbname, $table) = @_;
	my $types = ($self->{like} // $self)->{types}{$table};
	my @columns = grep { exists $types->{$_} } @{ $self->{columns}{$table} };
	my $list = join ', ', map { identifier($_) . "::$types->{$_}" } @columns;
	my @rows = lines($node, $dbname, "SELECT $list FROM $self->{only}{$table}$table");
	my $number = 0;

	$self->{rows}{$table} = [
		map {
			my %row;
			@row{@columns} = @$_;
			$row{"\0number"} = $number++;
			\%row
		} @rows ];
	return;
}

# The row that a reference of a row points to, or undef.
sub target
{
	my ($self, $row, $reference) = @_;
	my @values = map { $row->{$_} } @{ $reference->{columns} };
	my ($parent, @referenced) = ($reference->{parent}, @{ $reference->{referenced} });
	my $name = join "\x02", $parent, @referenced;

	return undef if grep { $_ eq '\N' } @values;
	$self->{found}{$name} //= {
		map { my $r = $_; (join("\x02", map { $r->{$_} } @referenced), $r) }
		  @{ $self->{rows}{$parent} } };
	return $self->{found}{$name}{ join "\x02", @values }
	  // die "foreign key without a row: $name = @values";
}

# A row by some of its columns: foreign keys as business keys of their rows.
sub describe
{
	my ($self, $table, $row, @wanted) = @_;
	my %open = map { ($_ => 1) } @wanted;
	my %wanted = %open;
	my @parts;

	for my $reference (@{ $self->{references}{$table} // [] })
	{
		next if grep { !$wanted{$_} } @{ $reference->{columns} };
		next if !$self->{business}{ $reference->{parent} };
		my $target = $self->target($row, $reference);
		push @parts, "@{$reference->{columns}} -> "
		  . (defined $target ? $self->key($reference->{parent}, $target) : '\N');
		delete $open{$_} for @{ $reference->{columns} };
	}
	push @parts, "$_ = $row->{$_}" for grep { $open{$_} } @wanted;
	return '(' . join(', ', @parts) . ')';
}

# The business key of a row.
sub key
{
	my ($self, $table, $row) = @_;
	my $known = \$self->{keys}{$table}{ $row->{"\0number"} };

	return $$known if defined $$known;
	$$known = '(circle)';
	return $$known = $self->describe($table, $row, @{ $self->{business}{$table} });
}

# All rows: content by business key, for every table.
sub rows
{
	my ($self) = @_;
	my %result;

	for my $table ($self->tables)
	{
		my $columns = ($self->{like} // $self)->{columns}{$table};
		my %surrogate = map { ($_ => 1) } @{ $self->{surrogate}{$table} // [] };
		my %seen;

		$result{$table} = {};
		for my $row (@{ $self->{rows}{$table} })
		{
			my $key = $self->key($table, $row);
			push @{ $seen{$key} },
			  $self->describe($table, $row, grep { !$surrogate{$_} } @$columns);
		}
		for my $key (keys %seen)
		{
			my $n = 0;
			$result{$table}{ $key . ($n++ ? " #$n" : '') } = $_ for sort @{ $seen{$key} };
		}
	}
	return \%result;
}

# A column's value under other keys: numbers change places, uuids are made
# anew, foreign keys follow.
sub other_value
{
	my ($self, $table, $row, $column) = @_;

	return '\N' if $row->{$column} eq '\N';
	for my $reference (@{ $self->{references}{$table} // [] })
	{
		my @at = grep { $reference->{columns}[$_] eq $column } 0 .. $#{ $reference->{columns} };
		my $target = @at ? $self->target($row, $reference) : undef;
		next if !defined $target;
		my $referenced = $reference->{referenced}[ $at[0] ];
		return $self->other_value($reference->{parent}, $target, $referenced)
		  if $target != $row || $referenced ne $column;
	}
	return $row->{$column} if !grep { $_ eq $column } @{ $self->{surrogate}{$table} // [] };
	return md5_hex($row->{$column}) if $self->{types}{$table}{$column} eq 'uuid';
	if (!$self->{places}{$table}{$column})
	{
		my %values = map { ($_->{$column} => 1) } @{ $self->{rows}{$table} };
		my @values = sort keys %values;
		@{ $self->{places}{$table}{$column} }{@values} = reverse @values;
	}
	return $self->{places}{$table}{$column}{ $row->{$column} };
}

# Adds a row, and all it refers to, to a part.
sub take
{
	my ($self, $part, $table, $row) = @_;

	return if $part->{$table}{ $row->{"\0number"} };
	$part->{$table}{ $row->{"\0number"} } = $row;
	for my $reference (@{ $self->{references}{$table} // [] })
	{
		my $target = $self->target($row, $reference);
		$self->take($part, $reference->{parent}, $target) if defined $target;
	}
	return;
}

# Returns a part of the rows: those for which $choose->($table, $row) is true,
# and all they refer to; by table and number.
sub part
{
	my ($self, $choose) = @_;
	my %part;

	for my $table ($self->tables)
	{
		$choose->($table, $_) && $self->take(\%part, $table, $_) for @{ $self->{rows}{$table} };
	}
	return \%part;
}

# The business keys of a part, by table.
sub keys_of
{
	my ($self, $part) = @_;
	my %keys;

	for my $table (keys %$part)
	{
		$keys{$table}{ $self->key($table, $_) } = 1 for values %{ $part->{$table} };
	}
	return \%keys;
}

# Returns SQL that loads a part in any order.  Options: other => 1 for other
# keys; edit => sub ($table, $copy), which may change what does not identify a
# row.
sub load
{
	my ($self, $part, %options) = @_;
	my $sql = "SET session_replication_role = replica;\n";

	for my $table (grep { $part->{$_} } $self->tables)
	{
		my @columns = grep { !$self->{generated}{$table}{$_} } @{ $self->{columns}{$table} };
		$sql .= "COPY $table (" . join(', ', map { identifier($_) } @columns) . ") FROM STDIN;\n";
		for my $number (sort { $b <=> $a } keys %{ $part->{$table} })
		{
			my $row = $part->{$table}{$number};
			my %copy = map { ($_ => $options{other} ? $self->other_value($table, $row, $_) : $row->{$_}) } @columns;
			$options{edit}->($table, \%copy) if $options{edit};
			$sql .= join("\t", @copy{@columns}) . "\n";
		}
		$sql .= "\\.\n";
	}
	return $sql . "RESET session_replication_role;\n";
}

# Compares two results of rows.  $own: business keys that only the other side
# has, by table.  Returns sentences, none if both say the same.
sub differences
{
	my ($one, $other, $own) = @_;
	my @sentences;

	for my $table (sort keys %$one)
	{
		my ($expected, $got) = ($one->{$table}, $other->{$table});
		for my $key (sort keys %$expected)
		{
			my $there = $got->{$key};
			push @sentences, "$table $key is missing" if !defined $there;
			push @sentences, "$table $key differs:\n  $expected->{$key}\n  $there"
			  if defined $there && $there ne $expected->{$key};
		}
		for my $key (sort keys %$got)
		{
			push @sentences, "$table $key should not be there: $got->{$key}"
			  if !exists $expected->{$key} && !exists $own->{$table}{$key};
		}
		for my $key (sort keys %{ $own->{$table} // {} })
		{
			push @sentences, "$table $key of the till itself is gone"
			  if !exists $got->{$key};
		}
	}
	return @sentences;
}

1;
