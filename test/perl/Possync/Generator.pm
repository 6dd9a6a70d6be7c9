
=head1 NAME

Possync::Generator - schemas nobody designed, with data

=head1 SYNOPSIS

  srand($seed);
  my $schema = Possync::Generator->new;
  $schema->definition('master');    # SQL
  $schema->data;                    # SQL
  $schema->business;                # for Possync::Content

=head1 DESCRIPTION

Tables refer to each other by keys and by other unique columns, forth, back and
to themselves.  Every table has columns that identify a row whatever its key is
(business); the till's tables have other column types, orders and kinds of keys.
Everything is drawn from rand, so that a seed gives the same again.

=cut

package Possync::Generator;

use strict;
use warnings FATAL => 'all';

my @schemas = ('public', 'stock', 'Head Office', 'größe');

# Names that have to be quoted, or that are cut off one byte later
my @names = (
	'order', 'select', 'user', 'group', 'table', 'Mixed Case', 'größe', 'tab.dot', 'quo"te',
	"apo'strophe", '$money$', '日本語', 'plain', 'n', 'w1', 'r', 't', 'rkey', 'lkey', 'u', 'old',
	'x' x 60, 'ü' x 30);
my %reserved = map { ($_ => 1) } qw(order select user group table);

# Types of columns: those a till may have instead, and how a value is made
my %types = (
	text => [ [ 'character varying(500)', 'text' ], \&text ],
	'character varying(200)' => [ ['text'], \&text ],
	integer => [ [ 'bigint', 'numeric', 'text' ], sub { int(rand 4e9) - 2e9 } ],
	smallint => [ [ 'integer', 'bigint' ], sub { int(rand 60000) - 30000 } ],
	bigint => [ ['numeric'], sub { int(rand 2**52) } ],
	'numeric(12,3)' => [ [ 'numeric', 'numeric(14,4)' ], sub { sprintf '%.3f', rand 1e6 } ],
	'double precision' => [ [], sub { one_of('NaN', '-Infinity', '0', '-0', rand, 1e300 * rand) } ],
	real => [ ['double precision'], sub { one_of('NaN', '0.5', '-1.25', 'Infinity') } ],
	boolean => [ [], sub { one_of('t', 'f') } ],
	date => [ ['timestamp without time zone'], sub { one_of('infinity', '0044-03-15 BC', sprintf '20%02d-%02d-%02d', rand 40, 1 + rand 12, 1 + rand 28) } ],
	'timestamp with time zone' => [ [], sub { one_of('-infinity', sprintf '20%02d-06-01 12:00:%02d.%06d+02', rand 40, rand 60, rand 1e6) } ],
	interval => [ [], sub { sprintf '%d mons %d days %d secs', rand 20, rand 90, rand 1e5 } ],
	jsonb => [ ['text'], sub { one_of('{}', 'null', '[1, "zwei", {"a": null}]', '{"k": "' . int(rand 1000) . '"}') } ],
	json => [ ['jsonb'], sub { one_of('{"a": 1}', '[1, 2]') } ],
	'text[]' => [ [], sub { one_of('{}', '{NULL,"",a}', '{{a,b},{"c,d","e"}}') } ],
	'integer[]' => [ ['bigint[]'], sub { one_of('{}', '[0:1]={1,2}', '{' . int(rand 100) . '}') } ],
	bytea => [ [], sub { sprintf '\x%08x00ff', rand 2**32 } ],
	inet => [ [], sub { sprintf '10.%d.%d.0/24', rand 256, rand 256 } ],
	uuid => [ [], \&uuid ],
	int4range => [ [], sub { one_of('empty', '(,)', sprintf '[%d,%d)', rand 100, 100 + rand 100) } ],
	'bit varying(20)' => [ ['text'], sub { one_of('', '101', '0' x 20) } ],
	'character(7)' => [ ['character varying(20)'], sub { one_of('', 'abc', 'abcdefg') } ]);
my @types = sort keys %types;

sub one_of { return $_[ rand @_ ] }

sub chance { return rand() < $_[0] }

sub uuid { return join '-', map { join '', map { sprintf '%x', rand 16 } 1 .. $_ } 8, 4, 4, 4, 12 }

sub text
{
	return one_of('', ' ', 'NULL', '\N', "a\tb\nc\\", "it's \"quoted\"", 'größer 日本', 'x' x 150, 'plain ' . int(rand 1e6));
}

# As format('%I') writes a name
sub ident
{
	my ($name) = @_;
	return $name if $name =~ /\A[a-z_][a-z0-9_]*\z/ && !$reserved{$name};
	$name =~ s/"/""/g;
	return qq{"$name"};
}

sub list { return join ', ', map { ident($_) } @_ }

sub shuffled
{
	my @list = @_;
	for (my $i = $#list; $i > 0; $i--)
	{
		my $j = int rand($i + 1);
		@list[ $i, $j ] = @list[ $j, $i ];
	}
	return @list;
}

sub new
{
	my ($class) = @_;
	my $self = bless { tables => [] }, $class;
	my $n = 3 + int rand 10;

	$self->add_table for 1 .. $n;
	$self->add_foreign_keys($_) for @{ $self->{tables} };
	$self->add_rows;
	return $self;
}

# A name that is new among those of a hash
sub name
{
	my ($taken) = @_;
	my $name;
	do { $name = one_of(@names); $name .= int rand 100 if chance(0.6) || $taken->{$name} }
	  while $taken->{$name} || length $name > 63;
	$taken->{$name} = 1;
	return $name;
}

sub add_column
{
	my ($table, %column) = @_;
	$column{name} //= name($table->{taken});
	$column{till} //= $column{type};
	push @{ $table->{columns} }, \%column;
	return $column{name};
}

# Columns that refer to those of another table; returns their names.
sub add_reference
{
	my ($table, $parent, $referenced, %options) = @_;
	my @columns = map {
		my $name = $_;
		my ($target) = grep { $_->{name} eq $name } @{ $parent->{columns} };
		add_column($table, type => $target->{type}, till => $target->{till}, fk => 1,
			notnull => $options{notnull});
	} @$referenced;
	push @{ $table->{foreign_keys} },
	  { columns => \@columns, parent => $parent, referenced => $referenced, %options };
	return @columns;
}

# A table with its key and what identifies its rows.
sub add_table
{
	my ($self) = @_;
	my $table = { taken => { updated_at => 1 }, columns => [], foreign_keys => [], surrogate => [] };
	my @before = @{ $self->{tables} };
	my $kind = one_of('number', 'number', 'number', 'number', 'uuid', 'natural', 'natural', 'unique', 'line', 'within', 'tree', 'owned');

	$kind = 'number' if !@before && $kind =~ /line|within|owned/;
	$table->{kind} = $kind;
	$table->{schema} = one_of('public', one_of(@schemas));
	$table->{name} = name($self->{taken}{ $table->{schema} } //= {});
	$table->{ident} = ident($table->{schema}) . '.' . ident($table->{name});
	my $parent = one_of(@before);
	my @parent;
	@parent = add_reference($table, $parent, $parent->{key}, notnull => 1, early => 1, cascade => chance(0.3))
	  if $kind =~ /line|within|owned/;

	if ($kind =~ /number|within|tree|owned/)
	{
		my $type = one_of('integer', 'bigint', 'smallint');
		my $till = one_of($type, 'bigint');
		my $key = add_column($table, type => $type, till => $till, notnull => 1, number => 1,
			made => { map { ($_ => one_of('serial', 'GENERATED ALWAYS AS IDENTITY', 'GENERATED BY DEFAULT AS IDENTITY')) } 'master', 'till' });
		$table->{surrogate} = [$key];
		$table->{key} = $kind eq 'within' ? [ @parent, $key ] : [$key];
	}
	elsif ($kind eq 'uuid')
	{
		$table->{surrogate} = $table->{key} =
		  [ add_column($table, type => 'uuid', notnull => 1, made => { map { ($_ => 'DEFAULT gen_random_uuid()') } 'master', 'till' }) ];
	}
	if ($kind eq 'line')
	{
		$table->{business} = $table->{key} =
		  [ shuffled(@parent, add_column($table, type => 'integer', till => one_of('integer', 'bigint'), notnull => 1, code => 1)) ];
	}
	else
	{
		my $type = one_of('text', 'text', 'character varying(200)', 'integer', 'numeric(12,3)');
		my @code = add_column($table, type => $type, notnull => 1, code => 1);
		push @code, add_column($table, type => 'integer', notnull => 1, code => 1) if chance(0.2);
		push @code, add_column($table, type => 'text') if $kind =~ /number|uuid/ && chance(0.15);
		if ($kind eq 'tree')
		{
			push @code, add_reference($table, $table, $table->{key}, early => 1, tree => 1);
		}
		elsif ($kind =~ /within|owned/)
		{
			push @code, @parent;
		}
		$table->{business} = \@code;
		$table->{key} = \@code if $kind =~ /natural|unique/;
	}
	$table->{partitioned} = 1 + int rand 4 if $kind =~ /number|natural|line/ && chance(0.2);
	$table->{unique} = $kind !~ /natural|unique|line/ && !$table->{partitioned} && chance(0.8);
	for (1 .. rand 7)
	{
		my $type = one_of(@types);
		my @till = @{ $types{$type}[0] };
		add_column($table, type => $type, till => @till && chance(0.3) ? one_of(@till) : $type, notnull => chance(0.3));
	}
	add_column($table, name => 'updated_at', type => 'timestamp with time zone', notnull => 1, stamp => 1) if chance(0.25);
	push @{ $self->{tables} }, $table;
	return;
}

# What may be referred to: the key, or other unique columns.
sub add_foreign_keys
{
	my ($self, $table) = @_;
	my $later = 0;

	for (1 .. rand 4)
	{
		my $parent = one_of(@{ $self->{tables} });
		$later ||= $parent == $table;
		my $notnull = chance(0.35);
		my @columns = map { my $name = $_; grep { $_->{name} eq $name } @{ $parent->{columns} } } @{ $parent->{business} };
		my $by_code = $parent->{unique} && $parent != $table && chance(0.3) && !grep { !$_->{notnull} } @columns;
		add_reference($table, $parent, $by_code ? $parent->{business} : $parent->{key},
			notnull => $notnull, cascade => $notnull && chance(0.3), deferrable => one_of('', '', 'DEFERRABLE', 'DEFERRABLE INITIALLY DEFERRED'));
		$parent->{named} = 1 if $by_code;
	}
	return;
}

# Definition of all tables; side: master or till.
sub definition
{
	my ($self, $side) = @_;
	my $sql = join '', map { "CREATE SCHEMA " . ident($_) . ";\n" } grep { $_ ne 'public' } @schemas;
	my $alter = '';

	for my $table (@{ $self->{tables} })
	{
		my @columns = map { column_definition($_, $side) } @{ $table->{columns} };
		my @gaps = map { "gap$_ integer" } 1 .. (chance(0.3) ? 1 + rand 3 : 0);
		@columns = shuffled(@columns, @gaps) if $side eq 'till' || @gaps;
		push @columns, "only_$side integer DEFAULT 5" if chance(0.3);
		push @columns, ($table->{kind} eq 'unique' ? 'UNIQUE (' : 'PRIMARY KEY (') . list(@{ $table->{key} }) . ')';
		push @columns, 'UNIQUE (' . list(shuffled(@{ $table->{business} })) . ')'
		  if $table->{unique} && ($side eq 'master' || $table->{named} || chance(0.8));
		$sql .= "CREATE TABLE $table->{ident} (\n\t" . join(",\n\t", @columns) . ')';
		if ($table->{partitioned} && !($side eq 'till' && chance(0.3)))
		{
			my $n = $table->{partitioned} + ($side eq 'till');
			$sql .= ' PARTITION BY HASH (' . list(one_of(@{ $table->{key} })) . ");\n";
			$sql .= 'CREATE TABLE ' . ident($table->{schema}) . ".part_$_ PARTITION OF $table->{ident} FOR VALUES WITH (MODULUS $n, REMAINDER " . ($_ - $self->{parts} - 1) . ");\n"
			  for ($self->{parts} //= 0) + 1 .. $self->{parts} + $n;
			$self->{parts} += $n;
		}
		else
		{
			$sql .= ";\n";
			# What inherits from a table is not a part of it here
			$sql .= 'CREATE TABLE ' . ident($table->{schema}) . ".heir_" . ++$self->{heirs} . " () INHERITS ($table->{ident});\n" if chance(0.1);
		}
		$alter .= "ALTER TABLE $table->{ident} DROP COLUMN " . (split / /)[0] . ";\n" for @gaps;
		for my $fk (@{ $table->{foreign_keys} })
		{
			$alter .= "ALTER TABLE $table->{ident} ADD FOREIGN KEY (" . list(@{ $fk->{columns} })
			  . ") REFERENCES $fk->{parent}{ident} (" . list(@{ $fk->{referenced} }) . ')'
			  . ($fk->{cascade} ? ' ON DELETE CASCADE ' : ' ') . ($fk->{deferrable} // '') . ";\n";
		}
	}
	$self->{parts} = $self->{heirs} = 0;
	return $sql . $alter;
}

sub column_definition
{
	my ($column, $side) = @_;
	my $type = $side eq 'till' ? $column->{till} : $column->{type};
	my $made = $column->{made}{$side};

	return ident($column->{name}) . ' ' . { smallint => 'smallserial', integer => 'serial', bigint => 'bigserial' }->{$type} . ' NOT NULL'
	  if ($made // '') eq 'serial';
	return ident($column->{name}) . " $type" . ($column->{notnull} ? ' NOT NULL' : '')
	  . (defined $made ? " $made" : '') . ($column->{stamp} ? ' DEFAULT now()' : '');
}

# Rows: keys first, then what identifies them, then the rest.
sub add_rows
{
	my ($self) = @_;

	for my $table (@{ $self->{tables} })
	{
		my $n = one_of(1, 2, 10, 10, 30, 30, 30, 60);
		my @numbers = shuffled(1 .. 2 * $n);
		$table->{rows} = [ map { {} } 1 .. $n ];
		for my $i (0 .. $n - 1)
		{
			my $row = $table->{rows}[$i];
			fill($table, $row, $_, $i, $numbers[$i]) for grep { !$_->{fk} } @{ $table->{columns} };
			refer($_, $row, $i) for grep { $_->{early} } @{ $table->{foreign_keys} };
		}
	}
	for my $table (@{ $self->{tables} })
	{
		for my $fk (grep { !$_->{early} } @{ $table->{foreign_keys} })
		{
			refer($fk, $_) for @{ $table->{rows} };
		}
	}
	return;
}

sub fill
{
	my ($table, $row, $column, $i, $number) = @_;
	my ($name, $type) = ($column->{name}, $column->{type});

	if ($column->{number}) { $row->{$name} = $number }
	elsif ($column->{code})
	{
		$row->{$name} = $type eq 'numeric(12,3)' ? sprintf('%d.500', $i) : $type eq 'integer' ? 1000 + $i : one_of('Code ', 'Cöde\'s ', "a\\b\t") . $i;
	}
	elsif ($column->{stamp}) { $row->{$name} = '2020-01-01 00:00:00+00' }
	elsif ($column->{notnull} || chance(0.8)) { $row->{$name} = $types{$type}[1]->() }
	return;
}

# Lets a row refer to one of the parent's; a tree's to an earlier one.
sub refer
{
	my ($fk, $row, $i) = @_;
	my @rows = @{ $fk->{parent}{rows} };

	@rows = @rows[ 0 .. $i - 1 ] if $fk->{tree};
	return if !@rows || !$fk->{notnull} && chance(0.3);
	my $target = one_of(@rows);
	@$row{ @{ $fk->{columns} } } = @$target{ @{ $fk->{referenced} } };
	return;
}

sub escaped
{
	my ($value) = @_;
	return '\N' if !defined $value;
	$value =~ s/\\/\\\\/g;
	$value =~ s/\t/\\t/g;
	$value =~ s/\n/\\n/g;
	return $value;
}

# Loads all rows of the master.
sub data
{
	my ($self) = @_;
	my $sql = "SET session_replication_role = replica;\n";

	for my $table (@{ $self->{tables} })
	{
		my @names = map { $_->{name} } @{ $table->{columns} };
		$sql .= "COPY $table->{ident} (" . list(@names) . ") FROM STDIN;\n";
		$sql .= join("\t", map { escaped($_) } @$_{@names}) . "\n" for @{ $table->{rows} };
		$sql .= "\\.\n";
	}
	return $sql . "RESET session_replication_role;\n";
}

sub business { return { map { ($_->{ident} => $_->{business}) } @{ $_[0]{tables} } } }

sub surrogate { return { map { ($_->{ident} => $_->{surrogate}) } @{ $_[0]{tables} } } }

# Changes of rows of a part: values and references of other rows of it.  Only
# those that have been synchronized get new names.
sub changes
{
	my ($self, $part, $synchronized) = @_;
	my $sql = '';

	for my $table (@{ $self->{tables} })
	{
		my %fixed = map { ($_ => 1) } @{ $table->{key} }, @{ $table->{business} }, @{ $table->{surrogate} };
		my @groups = map { [ $_->{name} ] } grep { !$_->{fk} && !$_->{stamp} } @{ $table->{columns} };
		push @groups, map { $_->{columns} } @{ $table->{foreign_keys} };
		@groups = grep { !grep { $fixed{$_} } @$_ } @groups;
		my @numbers = sort { $a <=> $b } keys %{ $part->{ $table->{ident} } // {} };
		my @rename = grep { $_->{code} && $_->{type} =~ /text|char/ } @{ $table->{columns} };

		for my $number (@numbers)
		{
			next if !chance(0.25);
			my $row = $part->{ $table->{ident} }{$number};
			my $donor = $part->{ $table->{ident} }{ one_of(@numbers) };
			my %set = map { ($_ => $donor->{$_}) } map { @$_ } grep { chance(0.4) } @groups;
			$set{ $rename[0]{name} } = "New $number"
			  if @rename && $table->{kind} !~ /natural|unique/ && !$table->{named} && $synchronized->{ $table->{ident} }{$number} && chance(0.3);
			$set{updated_at} = 'now' if grep { $_->{stamp} } @{ $table->{columns} };
			next if !%set;
			$sql .= "UPDATE $table->{ident} SET " . join(', ', map { ident($_) . ' = ' . literal($set{$_}) } sort keys %set)
			  . ' WHERE ' . join(' AND ', map { ident($_) . ' = ' . literal($row->{$_}) } @{ $table->{key} }) . ";\n";
		}
	}
	return $sql;
}

# A value in COPY's escapes as a literal
sub literal
{
	my ($value) = @_;
	return 'NULL' if $value eq '\N';
	$value =~ s/'/''/g;
	return "E'$value'";
}

1;
