# The connection breaks after every so many bytes, with a new connection and
# with a kept one: either the pull fails and has changed nothing, or it is
# complete.  Nothing is leaked by failing again and again.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# A sequence made in the transaction that fills it is not always right after a
# crash at wal_level minimal.
my $master = Possync->cluster('master', 'wal_level = replica');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($master->port);
my $catalogue = "SELECT * FROM catalogue WHERE what NOT LIKE 'price%' ORDER BY what, key";
my $step = 0;

# How often a pull is cut, about; 31 is more thorough
my $cuts = $ENV{POSSYNC_CUTS} // 21;

shop($master, products => 300, first_key => 1000001, office => 'on');
shop($till, products => 20);
connect_till($till, $proxy->port);
$till->safe_psql('postgres', <<"EOC");
ALTER SERVER hq OPTIONS (connect_timeout '2', statement_timeout '2s');
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
EOC
my $session = Possync::Session->new($till);

sub pull
{
	my ($out, $err) = $session->run("SELECT status, sqlstate, coalesce(error, '') FROM possync_pull('product')");
	return $out || $err;
}

like(pull(), qr/^ok/, 'first pull');

sub change
{
	$step++;
	$master->safe_psql('postgres', <<"EOC");
UPDATE product SET cost_price = cost_price + 1;
UPDATE template SET list_price = list_price + 1;
UPDATE barcode SET updated_at = now();
UPDATE category SET name = name || ' $step' WHERE code = 'C1';
INSERT INTO product (template, sku, cost_price) SELECT min(id), 'NEW$step', 1 FROM template;
INSERT INTO barcode (product, code) SELECT id, lpad('$step', 13, '9') FROM product WHERE sku = 'NEW$step';
EOC
	return;
}

# How many bytes a pull of all that receives, connecting anew or not
sub cost
{
	my ($anew) = @_;
	change();
	$proxy->cut if $anew;
	my $before = $proxy->stats->{received};
	like(pull(), qr/^ok/, 'a pull to be measured');
	return $proxy->stats->{received} - $before;
}

for my $anew (1, 0)
{
	my $bytes = cost($anew);
	my ($failed, $ok, %seen) = (0, 0);
	my @wrong;
	my $content = '';

	for (my $n = 1; $n < $bytes; $n += $n < 1000 ? 97 : int($bytes / $cuts))
	{
		if ($content eq '')
		{
			change();
			$content = content($till);
		}
		$proxy->cut if $anew;
		pull_check: {
			my $received = $proxy->stats->{received};
			$proxy->cut_after($n);
			my $result = pull();
			$proxy->pass;
			if ($result =~ /^failed\|(\w+)\|(.*)/s)
			{
				$failed++;
				$seen{$1}++;
				push @wrong, "$n: $result" if $1 !~ /^08/;
				push @wrong, "$n: content changed" if content($till) ne $content;
				pull() if !$anew;
				$content = '' if !$anew;
			}
			elsif ($result =~ /^ok/)
			{
				$ok++;
				$content = '';
			}
			else
			{
				push @wrong, "$n: $result";
			}
		}
	}
	my $kind = $anew ? 'new connection' : 'kept connection';
	is("@wrong", '', "$kind: every failure is one of the connection, and changes nothing");
	cmp_ok($failed, '>', 20, "$kind: it failed $failed times, not $ok") or diag explain \%seen;
	like(pull(), qr/^ok/, "$kind: and then it works");
	is_same($master, $till, $catalogue, "$kind: and is complete");
}

# Silence instead of a broken connection
for my $n (10, 1500, 20000)
{
	change();
	my $before = content($till);
	$proxy->cut;
	$proxy->hole_after($n);
	my $start = time;
	my $result = pull();
	my $seconds = time - $start;
	$proxy->cut;
	$proxy->pass;
	like($result, qr/^failed\|08/, "silence after $n bytes: $result");
	cmp_ok($seconds, '<', 5, "within the timeout of two seconds");
	is(content($till), $before, 'nothing changed');
	like(pull(), qr/^ok/, 'the next one succeeds');
}

# What happens at the master while it sends rows: it sleeps before one of them.
sub asleep
{
	my ($name, $kill, $mend, $sqlstate, $pattern) = @_;

	change();
	$master->safe_psql('postgres', <<'EOC');
ALTER TABLE barcode RENAME TO awake;
CREATE OR REPLACE FUNCTION doze() RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN ''; END $$;
CREATE VIEW barcode AS SELECT id, product, updated_at,
	CASE WHEN row_number() OVER (ORDER BY id) = 250 THEN (code || doze())::char(13) ELSE code END AS code FROM awake;
EOC
	my $before = content($till);
	$session->start_sql("SELECT status, sqlstate, error, error_context FROM possync_pull('product')");
	$master->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'clerk' AND wait_event = 'PgSleep'")
	  or die 'the master does not sleep';
	$kill->();
	my ($out, $err) = $session->answer(20);
	like($out, qr/^failed\|$sqlstate\|.*$pattern/s, "$name: failed");
	like($out, qr/remote SQL command: COPY \(SELECT .* FROM \S*barcode .*server "hq"/s, "$name: at that table");
	like($err, qr/WARNING:  pull of "product" failed: .*$pattern/s, "$name: with a warning");
	is(content($till), $before, "$name: nothing changed");
	$mend->();
	$master->safe_psql('postgres', 'DROP VIEW barcode; ALTER TABLE awake RENAME TO barcode');
	like(pull(), qr/^ok/, "$name: the next one succeeds");
	is_same($master, $till, $catalogue, "$name: and is complete");
	return;
}

my $signal = sub {
	my ($function) = @_;
	return sub {
		$master->safe_psql('postgres',
			"SELECT $function(pid) FROM pg_stat_activity WHERE usename = 'clerk'");
	};
};
asleep('terminated', $signal->('pg_terminate_backend'), sub { }, '57P01', 'terminating connection due to administrator command');
asleep('cancelled there', $signal->('pg_cancel_backend'), sub { }, 'HV00L', 'canceling statement due to user request');
asleep('shut down', sub { $master->stop('fast') }, sub { $master->start }, '57P01', 'terminating connection due to administrator command');
asleep('killed',
	sub {
		my ($postmaster) = split /\n/, slurp_file($master->data_dir . '/postmaster.pid');
		my @processes = ($postmaster, split /\n/,
			$master->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE usename = 'clerk'"));
		$master->kill9;
		kill 'KILL', @processes;
		for (1 .. 100)
		{
			last unless kill 0, @processes;
			select undef, undef, undef, 0.1;
		}
	},
	sub { $master->start },
	'08006', '');

# Failing again and again in one session
sub resources
{
	my $pid = $session->pid;
	my ($memory) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	my @files = glob "/proc/$pid/fd/*";
	return ($memory, scalar @files);
}

my $again = <<'EOC';
DO $$ DECLARE h record; BEGIN
	SET LOCAL client_min_messages = error;
	FOR i IN 1..%d LOOP
		h := possync_pull('product');
		IF h.status <> 'failed' THEN RAISE 'no failure'; END IF;
	END LOOP;
END $$
EOC
change();
# the errors: while connecting, asking, reading, writing
my %causes = (
	'while connecting' => [ sub { $proxy->down }, sub { $proxy->pass } ],
	'while asking' => [
		sub { $master->safe_psql('postgres', 'ALTER TABLE barcode RENAME TO gone') },
		sub { $master->safe_psql('postgres', 'ALTER TABLE gone RENAME TO barcode') } ],
	'while reading' => [
		sub { $master->safe_psql('postgres', 'ALTER TABLE barcode RENAME TO hidden; CREATE VIEW barcode AS SELECT id, product, code, updated_at + 1 / (id - id) * interval $$1 s$$ AS updated_at FROM hidden') },
		sub { $master->safe_psql('postgres', 'DROP VIEW barcode; ALTER TABLE hidden RENAME TO barcode') } ],
	'while writing' => [
		sub { $till->safe_psql('postgres', 'CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$; CREATE TRIGGER no AFTER INSERT OR UPDATE ON barcode EXECUTE FUNCTION no()') },
		sub { $till->safe_psql('postgres', 'DROP TRIGGER no ON barcode') } ]);

for my $cause (sort keys %causes)
{
	my ($break, $mend) = @{ $causes{$cause} };
	$break->();
	my ($out, $err) = $session->run(sprintf $again, 30);
	is($err, '', "failing $cause");
	my ($memory, $files) = resources();
	(undef, $err) = $session->run(sprintf $again, 200);
	is($err, '', '200 times more');
	my ($memory2, $files2) = resources();
	# tables and indexes that were not needed before may be opened
	cmp_ok($files2, '<=', $files + 10, "$files files stay open");
	cmp_ok($memory2 - $memory, '<', 2048, "memory stays: $memory kB, then $memory2 kB");
	$mend->();
	cmp_ok($master->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk'"),
		'<=', 1, 'no session too many at the master');
}
like(pull(), qr/^ok/, 'and then it succeeds');
is_same($master, $till, $catalogue, 'and is complete');

$session->quit;
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP/, 'nothing leaked');

done_testing();
