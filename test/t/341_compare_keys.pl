# Keys of all types, alone and with another column: compared, and read from a change log,
# whatever the settings of both sides.

use strict;
use warnings FATAL => 'all';
use Possync;
use Possync::Pair;
use Test::More;
my ($master, $till) = pair();
my %k = (
	inetk => "inet|'10.0.0.' || i",
	boolk => "boolean|i % 2 = 0",
	tsk => "timestamptz|timestamptz '2026-01-01 00:00+00' + i * interval '1.001 h'",
	numk => "numeric|i / 4.0",
	uk => "uuid|md5(i::text)::uuid",
	byk => "bytea|decode(lpad(to_hex(i),4,'0'), 'hex')",
	moodk => "mood|'m' || i",
	chark => "char(6)|'c' || i",
	dom => "dtext|'d' || i",
	ivk => "interval|i * interval '25 h'");
for my $n ($master, $till) {
	$n->safe_psql('postgres', "CREATE TYPE mood AS ENUM (" . join(',', map { "'m$_'" } 1 .. 40) . "); CREATE DOMAIN dtext AS text CHECK (VALUE <> ''); CREATE DOMAIN dint AS integer");
	for (sort keys %k) { my ($type) = split /\|/, $k{$_};
		$n->psql('postgres', "CREATE TABLE $_ (k $type PRIMARY KEY, n integer)") if $_ ne 'boolk';
		$n->psql('postgres', "CREATE TABLE c_$_ (id integer, k $type, n integer, PRIMARY KEY (id, k))"); }
}
there('CREATE EXTENSION possync');
here("ALTER DATABASE postgres SET possync.compare_interval = 0; ALTER DATABASE postgres SET possync.delete_limit=100; ALTER DATABASE postgres SET datestyle = 'German'");
there("ALTER DATABASE postgres SET datestyle = 'SQL, DMY'");
my $counts = "concat_ws('|', status, rows_read, rows_created, rows_updated, rows_deleted, rows_left_out, error)";
sub p { my ($m) = @_; my ($s, $o, $e) = $till->psql('postgres', "SELECT $counts FROM possync_pull('$m')"); return "$o" }
for my $t (sort keys %k) {
	my ($type, $ex) = split /\|/, $k{$t}, 2;
	for my $c ('', 'c_') {
		next if $c eq '' && $t eq 'boolk';
		my $m = "$c$t";
		$master->psql('postgres', "INSERT INTO $m SELECT " . ($c ? 'i, ' : '') . "($ex)::$type, i FROM generate_series(1, 30) i");
		my ($s, $o, $e) = $till->psql('postgres', "SELECT * FROM possync_add_model('$m', server => 'hq'); SELECT possync_set_model('$m', on_delete => 'delete')");
		do { diag("$m: $e"); next } if $e =~ /ERROR/;
		my @r = (p($m), p($m));
		is($r[1], 'ok|30|0|0|0|0', "$m again ($r[0])");
		is(here("SELECT count(*) FROM $m"), 30, "$m is all here");
		is(here("SELECT string_agg(concat_ws(' ', difference, local_key, remote_key), ', ') FROM (SELECT * FROM possync_compare('$m') LIMIT 2) c"), '', "$m no difference");
		# log
		there("SELECT possync_log('$m')"); p($m);
		there("DELETE FROM $m WHERE n = 5; UPDATE $m SET n = 600 WHERE n = 6");
		is(p($m), 'ok|1|0|1|1|0', "$m by the log");
	}
}
# Both sides have other encodings: then strings are hashed in a third form.
$master->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
my $words = "CREATE TABLE word (k text PRIMARY KEY, n text)";
$master->safe_psql('latin', "$words; INSERT INTO word SELECT 'stra' || chr(223) || 'e' || i, chr(252) || i FROM generate_series(1, 60) i; INSERT INTO word VALUES ('plain', 'plain')");
here("$words; CREATE SERVER latin FOREIGN DATA WRAPPER possync_postgres OPTIONS (host '127.0.0.1', port '" . $master->port . "', dbname 'latin'); CREATE USER MAPPING FOR CURRENT_USER SERVER latin OPTIONS (user 'clerk', password 'secret'); SELECT * FROM possync_add_model('word', server => 'latin'); SELECT possync_set_model('word', on_delete => 'delete')");
is(p('word'), 'ok|61|61|0|0|0', 'another encoding: all is here');
is(p('word'), 'ok|61|0|0|0|0', 'another encoding: nothing is gone');
is(here("SELECT count(*) FROM possync_compare('word')"), 0, 'another encoding: nothing differs');
$master->safe_psql('latin', "DELETE FROM word WHERE k = 'stra' || chr(223) || 'e7'; UPDATE word SET n = chr(228) WHERE k = 'plain'");
is(here("SELECT string_agg(difference, ', ' ORDER BY difference) FROM possync_compare('word')"), 'different, missing there', 'another encoding: what differs is told');
is(p('word'), 'ok|60|0|1|1|0', 'another encoding: and pulled');

done_testing();
