# Real music shop: the Chinook sample database, pulled whole into an empty till
# and into one that has a part of it under other keys.  It is looked for where
# CHINOOK says, else in ../shared/data/chinook beside the source tree.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Content;
use Possync::Copy;
use PostgreSQL::Test::Utils;
use Test::More;

my $file = $ENV{CHINOOK}
  // ($ENV{SOURCE_TREE} // '.') . '/../shared/data/chinook/Chinook_PostgreSql_SerialPKs.sql';
plan skip_all => "no Chinook database in $file; its address is https://github.com/lerocha/chinook-database"
  if !-r $file;

my %business = (
	artist => ['name'],
	genre => ['name'],
	media_type => ['name'],
	playlist => ['name'],
	album => [ 'title', 'artist_id' ],
	track => [ 'name', 'album_id', 'milliseconds' ],
	employee => [ 'last_name', 'first_name' ],
	customer => ['email'],
	invoice => [ 'customer_id', 'invoice_date', 'total' ],
	invoice_line => [ 'invoice_id', 'track_id' ],
	playlist_track => [ 'playlist_id', 'track_id' ]);
my @description = (
	business => { map { ("public.$_" => $business{$_}) } keys %business },
	surrogate => { map { ("public.$_" => ["${_}_id"]) } grep { $_ ne 'playlist_track' } keys %business });
my @roots = qw(playlist_track invoice_line);

my $sql = slurp_file($file);
$sql =~ s/\A.*^\\c [^\n]*//ms or die "$file is not what it was";

my $master = Possync->cluster('master');
my $till = Possync->cluster('till');

$master->safe_psql('postgres', 'CREATE DATABASE music');
run_sql($master, 'music', $sql);

sub all_of { return Possync::Content->new($_[0], $_[1], @description) }

my $complete = all_of($master, 'music');
is(scalar(my @tables = $complete->tables), 11, 'eleven tables');

sub configure
{
	my ($dbname) = @_;
	my $calls = join '', map { "SELECT * FROM possync_add_model('$_', server => 'hq');\n" } @roots;

	for my $model (sort keys %business)
	{
		$calls .= "SELECT possync_set_field('$model', '$_', match => true);\n" for @{ $business{$model} };
	}
	run_sql($till, $dbname, $calls);
	return;
}

# Nothing is written when nothing changed.
sub rests
{
	my ($dbname, $left_out, $name) = @_;
	my $before = versions($till, $dbname);

	is(pull_all($till, $dbname, @roots), "ok|0|0|0|$left_out", "$name: nothing to do");
	is(versions($till, $dbname), $before, "$name: nothing written");
	return;
}

my $changes = <<'EOC';
UPDATE employee SET reports_to = (SELECT employee_id FROM employee WHERE last_name = 'Park'), title = 'Temp'
WHERE last_name = 'Callahan';
UPDATE album SET artist_id = (SELECT artist_id FROM artist WHERE name = 'Accept') WHERE title = 'Let There Be Rock';
UPDATE track SET unit_price = unit_price + 1, genre_id = NULL WHERE milliseconds % 10 = 7;
UPDATE artist SET name = 'AC/DC (Australia)' WHERE name = 'AC/DC';
INSERT INTO artist (name) VALUES ('Nobody');
INSERT INTO album (title, artist_id) SELECT 'Nothing', artist_id FROM artist WHERE name = 'Nobody';
INSERT INTO track (name, album_id, media_type_id, milliseconds, unit_price)
SELECT 'Nothing ' || i, album_id, 1, i, 0.01 FROM album, generate_series(1, 500) i WHERE title = 'Nothing';
INSERT INTO playlist (name) VALUES ('Silence');
INSERT INTO playlist_track
SELECT playlist_id, track_id FROM playlist p, track t WHERE p.name = 'Silence' AND t.unit_price = 0.01;
EOC

# An empty till: every row comes, the playlists of the same name as well.
copy_schema($master, 'music', $till, 'empty');
configure('empty');
is(pull_all($till, 'empty', @roots), 'ok|15607|0|0|0', 'empty: every row created');
is_content($complete, all_of($till, 'empty'), {}, 'empty: the same content');
rests('empty', 0, 'empty');

# A till with a part of it, some of it changed, and things of its own.
my $n = 0;
my $part = $complete->part(
	sub { my ($table) = @_; $n++; $table =~ /artist|genre/ ? $n % 2 : $table =~ /line|playlist_track/ ? $n % 9 == 0 : $n % 3 == 0 });
my $fill = $complete->load(
	$part,
	other => 1,
	edit => sub {
		my ($table, $row) = @_;
		$row->{composer} = 'Trad.' if $table eq 'public.track' && $row->{milliseconds} % 7 == 0;
		$row->{fax} = '\N' if $table eq 'public.customer';
	});
copy_schema($master, 'music', $till, 'half');
run_sql($till, 'half', $fill);
run_sql($till, 'half', <<'EOC');
DELETE FROM playlist_track WHERE playlist_id NOT IN (SELECT min(playlist_id) FROM playlist GROUP BY name);
DELETE FROM playlist WHERE playlist_id NOT IN (SELECT min(playlist_id) FROM playlist GROUP BY name);
EOC
number_on($till, 'half');
run_sql($till, 'half', "INSERT INTO artist (name) VALUES ('Local Heroes')");
my $own = { 'public.artist' => { '(name = Local Heroes)' => 1 } };
configure('half');
my $counted = all_of($till, 'half')->rows;
cmp_ok(scalar keys %{ $counted->{'public.track'} }, '>', 1000, 'half: many tracks are there');
cmp_ok(scalar keys %{ $counted->{'public.track'} }, '<', 3503, 'half: but not all');

like(pull_all($till, 'half', @roots), qr/^ok\|\d+\|\d+\|\d+\|\d+$/, 'half: pulled');

# What is ambiguous is what has the same name twice, of which the till has one
my $twice = join ', ', map { "'$_'" } 'Music', 'Movies', 'TV Shows', 'Audiobooks';
my $ambiguous = "FROM synchronize_quarantine q JOIN synchronize_model m ON m.id = q.model WHERE q.reason = 'ambiguous'";
is(run_sql($till, 'half', "SELECT string_agg(DISTINCT m.name, ', '), count(DISTINCT q.remote_key) $ambiguous"),
	'playlist|8', 'half: playlists of the same name are not guessed');
is( run_sql($till, 'half', "SELECT count(*) FROM playlist WHERE name IN ($twice)"),
	4, 'half: and not created once more');
is( run_sql($till, 'half', "SELECT count(*) FROM synchronize_quarantine q JOIN synchronize_model m ON m.id = q.model"
		. " WHERE m.name = 'playlist_track' AND q.reason = 'dependency'"),
	run_sql($master, 'music', "SELECT count(*) FROM playlist_track JOIN playlist USING (playlist_id) WHERE name IN ($twice)"),
	'half: their tracks wait for them');

my $left_out = run_sql($till, 'half', 'SELECT count(*) FROM synchronize_quarantine');
rests('half', $left_out, 'half');

# Somebody takes care of the names, and all comes by itself.
run_sql($till, 'half', <<"EOC");
DELETE FROM playlist_track WHERE playlist_id IN (SELECT playlist_id FROM playlist WHERE name IN ($twice));
UPDATE playlist SET name = name || ' (shop)' WHERE name IN ($twice);
EOC
$own->{'public.playlist'} = { map { ("(name = $_ (shop))" => 1) } 'Music', 'Movies', 'TV Shows', 'Audiobooks' };
like(pull_all($till, 'half', @roots), qr/^ok\|\d+\|0\|0\|0$/, 'half: what waited is created');
is(run_sql($till, 'half', 'SELECT count(*) FROM synchronize_quarantine'), 0, 'half: nothing waits');
is_content($complete, all_of($till, 'half'), $own, 'half: the same content');
rests('half', 0, 'half');

# Changes, without columns that tell of them
run_sql($master, 'music', $changes);
my $changed = all_of($master, 'music');
for my $dbname ('empty', 'half')
{
	like(pull_all($till, $dbname, @roots), qr/^ok\|1003\|0\|[1-9]\d*\|0$/, "$dbname: changes pulled");
	is_content($changed, all_of($till, $dbname), $dbname eq 'half' ? $own : {}, "$dbname: the same content");
	rests($dbname, 0, $dbname);
}

done_testing();
