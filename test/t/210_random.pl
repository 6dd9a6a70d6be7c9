# Schemas nobody designed: random tables, foreign keys and data.  A part of the
# rows is at the master, another part on the till under other keys; after a
# pull the till must say what the master says, row by row, and keep what it has
# of its own.  Then the master changes.
#
# POSSYNC_SEED replays one seed, POSSYNC_SEEDS tells how many are tried.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Content;
use Possync::Copy;
use Possync::Generator;
use Test::More;

my $first = $ENV{POSSYNC_SEED} // 1;
my $last = $first + ($ENV{POSSYNC_SEEDS} // (defined $ENV{POSSYNC_SEED} ? 1 : 2)) - 1;

my $master = Possync->cluster('master');
my $till = Possync->cluster('till', 'restart_after_crash = on');

sub size
{
	my ($part) = @_;
	my $n = 0;
	$n += keys %$_ for values %$part;
	return $n;
}

# Adds all tables, in any order, and lets rows be recognised by what identifies
# them.  Returns the names of the models.
sub configure
{
	my ($schema, $dbname) = @_;
	my ($add, $set) = ('', '');

	for my $table (Possync::Generator::shuffled(@{ $schema->{tables} }))
	{
		my %business = map { ($_ => 1) } @{ $table->{business} };
		my $relation = Possync::Generator::literal($table->{ident} =~ s/\\/\\\\/gr);
		my $model = "(SELECT name FROM synchronize_model WHERE relation = $relation\::regclass)";
		$add .= "SELECT * FROM possync_add_model($relation, server => 'hq');\n";
		for my $value (1, 0)
		{
			$set .= "SELECT possync_set_field($model, " . Possync::Generator::literal($_) . ', match => ' . ($value ? 'true' : 'false') . ");\n"
			  for grep { !$value == !$business{$_} } map { $_->{name} } @{ $table->{columns} };
		}
	}
	$set .= <<'EOC';
SELECT possync_set_field(m.name, f.name, copy => false)
FROM synchronize_model m JOIN synchronize_field f ON f.model = m.id WHERE f.name = 'only_till';
EOC
	run_sql($till, $dbname, $add . $set);
	return Possync::Generator::shuffled(split /\n/, run_sql($till, $dbname, 'SELECT name FROM synchronize_model ORDER BY id'));
}

sub try_seed
{
	my ($seed) = @_;
	my $db = "seed_$seed";
	srand $seed;
	my $schema = Possync::Generator->new;
	my @description = (business => $schema->business, surrogate => $schema->surrogate, ignore => qr/^only_/);

	$_->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0") for $master, $till;
	my $definition = $schema->definition('master');
	note($definition);
	run_sql($master, $db, $definition . $schema->data);
	my $all = Possync::Content->new($master, $db, @description);

	my $here = $all->part(sub { rand() < 0.4 });
	my $there = $all->part(sub { rand() < 0.3 });
	my $later = $all->part(sub { my ($table, $row) = @_; $there->{$table}{ $row->{"\0number"} } || rand() < 0.2 });
	my $truncate = 'TRUNCATE ' . join(', ', $all->tables) . ";\n";
	run_sql($master, $db, $truncate . $all->load($there));

	$definition = $schema->definition('till');
	note($definition);
	run_sql($till, $db, $definition);
	run_sql($till, $db, $all->load($here, other => 1));
	number_on($till, $db);
	connect_till($till, $master->port, dbname => $db, remote => $db);
	my @models = configure($schema, $db);

	my $content = sub { Possync::Content->new($_[0], $db, @description, like => $all) };
	my $compare = sub {
		my ($on_master, $name) = @_;
		my $expected = $content->($master);
		my (%both, %own);
		for my $part ($here, $on_master)
		{
			$both{$_} = { %{ $both{$_} // {} }, %{ $part->{$_} } } for keys %$part;
		}
		for my $table ($all->tables)
		{
			my $rows = @{ $expected->{rows}{$table} };
			my $got = @{ $content->($till)->{rows}{$table} };
			is($got, scalar keys %{ $both{$table} // {} }, "$name: number of rows of $table") if $got != keys %{ $both{$table} // {} };
		}
		my $got = $content->($till)->rows;
		my $rows = $expected->rows;
		for my $table ($all->tables)
		{
			$own{$table} = { map { ($_ => 1) } grep { !$rows->{$table}{$_} } keys %{ $got->{$table} } };
		}
		return is_content($expected, $content->($till), \%own, $name);
	};
	my $quiet = sub {
		my ($name) = @_;
		my $before = versions($till, $db);
		is(pull_all($till, $db, @models), 'ok|0|0|0|0', "$name: nothing to do");
		is(versions($till, $db), $before, "$name: nothing written");
	};

	my %matched;
	for my $table (keys %$there)
	{
		$matched{$table}{$_} = 1 for grep { $here->{$table}{$_} } keys %{ $there->{$table} };
	}
	my $matched = size(\%matched);
	my $created = size($there) - $matched;
	like(pull_all($till, $db, @models), qr/^ok\|$created\|$matched\|\d+\|0$/, "seed $seed: $created rows created, $matched matched") or return;
	$compare->($there, "seed $seed: the same content") or return;
	$quiet->("seed $seed");

	my %new = map {
		my $table = $_;
		($table => { map { ($_ => $later->{$table}{$_}) } grep { !$there->{$table}{$_} } keys %{ $later->{$table} } })
	} keys %$later;
	run_sql($master, $db, $all->load(\%new, edit => sub { $_[1]{updated_at} = 'now' if exists $_[1]{updated_at} })
		. $schema->changes($later, $there));
	like(pull_all($till, $db, @models), qr/^ok\|\d+\|\d+\|\d+\|0$/, "seed $seed: changes pulled") or return;
	$compare->($later, "seed $seed: the same content again") or return;
	$quiet->("seed $seed");
	$_->safe_psql('postgres', "DROP DATABASE $db WITH (FORCE)") for $master, $till;
	return;
}

for my $seed ($first .. $last)
{
	my $failed = grep { !$_ } Test::More->builder->summary;
	eval { try_seed($seed); 1 } or fail("seed $seed") || diag($@);
	diag("replay with POSSYNC_SEED=$seed") if $failed < grep { !$_ } Test::More->builder->summary;
}

done_testing();
