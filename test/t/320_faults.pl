# A storm: tills go on selling while everything around their pushes fails.  The
# worker dies at every point of the protocol, connections break after so many
# bytes in either direction, sessions are terminated, tills and master crash.
# Afterwards every sale is at the master exactly once and whole, and nothing
# that was rolled back is.
#
# POSSYNC_FAULTS tells how many faults there are, POSSYNC_SEED replays a seed.

use strict;
use warnings FATAL => 'all';

use POSIX ();
use Possync;
use Possync::Sales;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $faults = $ENV{POSSYNC_FAULTS} // 150;
my $seed = $ENV{POSSYNC_SEED} // 4711;
my @points = ('push bound', 'push beside', 'push ahead', 'push prepared', 'push written', 'push confirmed');

my $master = Possync->cluster('master', "restart_after_crash = on\ndeadlock_timeout = 100ms");
sales_master($master);
# what the master refuses for a while
$master->safe_psql('postgres', 'ALTER TABLE sale_line ADD CONSTRAINT modest CHECK (quantity < 900);
	CREATE UNIQUE INDEX ON sale_line (sale, position)');

my @tills = map { { number => $_, node => Possync->cluster("till$_", "restart_after_crash = on\nmax_worker_processes = 20\ndeadlock_timeout = 100ms") } } 1, 2;
for my $till (@tills)
{
	$till->{proxy} = Possync::Proxy->new($master->port);
	sales_till($till->{node}, $till->{proxy}->port, first_key => 1 + 7000 * $till->{number});
	$till->{node}->safe_psql('postgres', <<'EOC');
ALTER SERVER hq OPTIONS (connect_timeout '2', statement_timeout '5s');
ALTER DATABASE postgres SET possync.batch_entries = 20;
CREATE SEQUENCE sale_number;
CREATE TABLE shift (closed boolean NOT NULL);
INSERT INTO shift VALUES (false);
CREATE TABLE latency (seconds float8);

-- One more of the first line, or as many as are asked for
CREATE FUNCTION amend(which integer, amount integer DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	before numeric;
	after numeric;
BEGIN
	SELECT total INTO before FROM sale WHERE id = which FOR UPDATE;
	UPDATE sale_line SET quantity = coalesce(amount, quantity + 1) WHERE sale = which AND position = 1;
	SELECT sum(quantity * price) INTO after FROM sale_line WHERE sale = which;
	UPDATE sale SET total = after WHERE id = which;
	UPDATE payment SET amount = payment.amount + after - before WHERE sale = which AND kind = 'cash';
END $$;

-- A line written anew: the master takes the new one only after the old is gone
CREATE FUNCTION rewrite(which integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	line sale_line;
BEGIN
	PERFORM FROM sale WHERE id = which FOR UPDATE;
	DELETE FROM sale_line WHERE sale = which AND position = 1 RETURNING * INTO line;
	INSERT INTO sale_line (sale, position, product, quantity, price)
	SELECT which, 1, line.product, line.quantity, line.price WHERE line.id IS NOT NULL;
END $$;

-- One of the last sales
CREATE FUNCTION recent(n integer) RETURNS integer LANGUAGE sql AS $$
	SELECT id FROM sale ORDER BY id DESC OFFSET floor(random() * n) LIMIT 1
$$;

CREATE FUNCTION serve(prefix text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	n bigint := nextval('sale_number');
	new integer := sell(prefix || n, CASE WHEN n % 3 > 0 THEN 'C' || n / 7 END, 1 + (n % 4)::integer);
BEGIN
	IF n % 4 = 0 THEN
		PERFORM amend(recent(15));
	END IF;
	IF n % 13 = 0 THEN
		DELETE FROM sale WHERE id = recent(30);
	END IF;
	IF n % 29 = 0 THEN
		PERFORM rewrite(recent(20));
	END IF;
	IF n % 101 = 0 THEN
		PERFORM amend(new, 999);
	END IF;
	RETURN n % 6 > 0;
END $$;

CREATE PROCEDURE keep_selling(prefix text) LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
BEGIN
	WHILE NOT (SELECT closed FROM shift) LOOP
		began := clock_timestamp();
		IF serve(prefix) THEN
			COMMIT;
		ELSE
			ROLLBACK;
		END IF;
		INSERT INTO latency VALUES (extract(epoch FROM clock_timestamp() - began));
		COMMIT;
		PERFORM pg_sleep(0.2);
	END LOOP;
END $$;

-- Pushes with every fault once; tells how each went
CREATE PROCEDURE fail_at(prefix text, faults text[], INOUT results text DEFAULT '') LANGUAGE plpgsql AS $$
DECLARE
	fault text;
	status text;
BEGIN
	FOREACH fault IN ARRAY faults LOOP
		PERFORM serve(prefix);
		EXECUTE format('ALTER DATABASE postgres SET possync.fault = %L', fault);
		COMMIT;
		SELECT p.status INTO status FROM possync_push('sale') p;
		results := results || ' ' || status;
		COMMIT;
	END LOOP;
	ALTER DATABASE postgres RESET possync.fault;
	COMMIT;
END $$;
EOC
}

# Forked processes leave no other trace than what they print.
sub process
{
	my ($work) = @_;
	pipe(my $reader, my $writer) or die "pipe: $!";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		$SIG{__DIE__} = 'DEFAULT';
		close $reader;
		eval { $work->($writer); 1 } or print $writer "died: $@";
		close $writer;
		POSIX::_exit(0);
	}
	close $writer;
	return { pid => $pid, reader => $reader };
}

sub wait_for
{
	my ($process) = @_;
	local $/;
	my $text = readline $process->{reader};
	waitpid $process->{pid}, 0;
	return $text // '';
}

# A session with a cluster that may be down for a moment
sub session
{
	my ($node) = @_;
	for (1 .. 300)
	{
		my $session = eval { Possync::Session->new($node) };
		return $session if $session;
		usleep(100_000);
	}
	die $node->name . ' does not come back';
}

sub keep_selling
{
	my ($till, $writer) = @_;
	my $node = $till->{node};
	my %errors;

	while (1)
	{
		my $session = session($node);
		my ($out, $err) = $session->run('SELECT closed FROM shift');
		last if $out eq 't';
		$session->start_sql("SET lock_timeout = '2s'; CALL keep_selling('T$till->{number}-')");
		($out, $err) = $session->answer(3600);
		$session->quit;
		next if $err eq '' || $err =~ /server closed|connection to server|terminat|shutting down|recovery mode/;
		print $writer "$err\n";
	}
	return;
}

# What a driver of faults remembers: its session, and how many were injected
sub storm
{
	my ($till, $writer, $n) = @_;
	my ($node, $proxy) = @$till{qw(node proxy)};
	my $session = session($node);
	my ($injected, %count) = (0);
	my $push = "SELECT status, error FROM possync_push('sale')";
	my $serve = "SELECT serve('T$till->{number}-')";

	srand($seed + $till->{number});
	$session->run('SET client_min_messages = error');

	my $note = sub {
		my ($kind, $failed) = @_;
		$count{$kind}[ $failed ? 0 : 1 ]++;
		$injected++ if $failed;
	};
	my $reconnect = sub {
		eval { $session->quit };
		$session = session($node);
		$session->run('SET client_min_messages = error; ALTER DATABASE postgres RESET possync.fault');
	};
	my $pushed = sub {
		my ($out, $err) = $session->run("$serve; $push");
		print $writer "$err\n" if $err ne '';
		return $out !~ /^ok/m;
	};
	# how many bytes a push takes
	my %bytes;
	my $measure = sub {
		my $before = $proxy->stats;
		my ($out) = $session->run($push);
		my $after = $proxy->stats;
		%bytes = map { $_ => $after->{$_} - $before->{$_} } qw(sent received) if !%bytes || $out =~ /^ok/;
	};
	$pushed->();
	$measure->();

	my %kinds = (
		point => sub {
			my @faults = map { (rand() < 0.5 ? 'exit: ' : 'error: ') . $points[ rand @points ] } 1 .. 10;
			my ($out, $err) = $session->run("CALL fail_at('T$till->{number}-', '{" . join(',', map { qq("$_") } @faults) . "}')");
			print $writer "$err\n" if $err ne '';
			my @results = split ' ', $out;
			$note->($faults[$_], $results[$_] ne 'ok') for 0 .. $#results;
		},
		answer => sub {
			# half of them about the end, where the answer of COMMIT is
			my $left = rand() < 0.5 ? rand($bytes{received}) : $bytes{received} - rand(200);
			$proxy->cut_after(1 + int $left);
			$note->('answer cut', $pushed->());
			$proxy->pass;
		},
		request => sub {
			$proxy->cut_after_sent(1 + int rand $bytes{sent});
			$note->('request cut', $pushed->());
			$proxy->pass;
		},
		cut => sub {
			$session->start_sql("$serve; $push");
			usleep(rand 60_000);
			$proxy->cut;
			my ($out) = $session->answer;
			$note->('cut at any time', $out !~ /^ok/m);
		},
		terminate => sub {
			$session->start_sql("$serve; $push");
			usleep(rand 60_000);
			$node->psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'possync push'");
			my ($out) = $session->answer;
			$note->('worker terminated', $out !~ /^ok/m);
		},
		cancel => sub {
			$session->start_sql("$serve; $push");
			usleep(rand 60_000);
			$node->psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
			my ($out) = $session->answer;
			$note->('push cancelled', $out !~ /^ok/m);
		},
		kill => sub {
			my $point = $points[ rand @points ];
			$session->run("ALTER DATABASE postgres SET possync.fault = 'kill: $point'");
			$session->run("$serve; $push");
			$reconnect->();
			$note->("kill: $point", 1);
		},
		crash => sub {
			$session->start_sql("$serve; $push");
			usleep(rand 60_000);
			$node->stop('immediate');
			$node->start;
			$reconnect->();
			$note->('till crashed', 1);
		});
	my @plan = (
		('point') x 60, ('answer') x 150, ('request') x 60, ('cut') x 50,
		('terminate') x 20, ('cancel') x 15, ('kill') x 8, ('crash') x 2);
	my $pushes = 0;
	while ($injected < $n && $pushes++ < 2 * $n)
	{
		$kinds{ $plan[ rand @plan ] }->();
		# else the queue only grows
		$measure->() if $pushes % 4 == 0;
	}
	$session->quit;
	print $writer "injected $injected\n";
	print $writer map { "# till $till->{number}, $_: " . ($count{$_}[0] // 0) . ' failed, ' . ($count{$_}[1] // 0) . " did not\n" } sort keys %count;
	return;
}

srand($seed);
my $start = time;
my @sellers = map { my $till = $_; map { process(sub { keep_selling($till, @_) }) } 1, 2 } @tills;
my @storms = map { my $till = $_; process(sub { storm($till, $_[0], int($faults / @tills) + 1) }) } @tills;
my $restarts = 0;

# The master has its own bad times.
while (grep { kill 0, $_->{pid} and waitpid($_->{pid}, POSIX::WNOHANG()) == 0 } @storms)
{
	usleep(5_000_000 + rand 3_000_000);
	if ($restarts % 2)
	{
		my ($pid) = $master->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' LIMIT 1");
		kill 'KILL', $pid;
		$master->poll_query_until('postgres', 'SELECT true');
	}
	else
	{
		$master->stop('immediate');
		$master->start;
	}
	$restarts++;
}
my $injected = $restarts;
for (@storms)
{
	my $text = wait_for($_);
	$injected += $1 if $text =~ s/^injected (\d+)\n//m;
	diag($1) while $text =~ s/^(# .*)\n//m;
	is($text, '', 'nothing unexpected happened to the pushes');
}
$_->{node}->safe_psql('postgres', 'UPDATE shift SET closed = true') for @tills;
is(wait_for($_), '', 'nor to a seller') for @sellers;
cmp_ok($injected, '>=', $faults, sprintf '%d faults in %.0f seconds, seed %d', $injected, time - $start, $seed);

# The first of what is wrong
sub some
{
	return join "\n", @_ > 10 ? (@_[ 0 .. 9 ], '... ' . @_) : @_;
}

# The calm
my @here;
for my $till (@tills)
{
	my $node = $till->{node};
	my $name = $node->name;
	$till->{proxy}->pass;
	$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET possync.fault');
	is(push_sales($node), 'ok', "$name pushes");
	my ($open, $bad, $p99, $sold) = split /\|/, $node->safe_psql('postgres', <<'EOC');
SELECT (SELECT count(*) FROM synchronize_queue q WHERE NOT EXISTS (SELECT FROM synchronize_held h WHERE h.txid = q.txid)),
	(SELECT count(*) FROM synchronize_quarantine WHERE sqlstate <> '23514' AND reason <> 'dependency'),
	(SELECT percentile_disc(0.99) WITHIN GROUP (ORDER BY seconds) FROM latency),
	(SELECT count(*) FROM latency)
EOC
	is($open, 0, "$name: nothing waits but what is held");
	is($bad, 0, "$name: only what the master refuses is in quarantine")
	  || diag($node->safe_psql('postgres', 'SELECT * FROM synchronize_quarantine'));
	cmp_ok($p99, '<', 1, "$name: its sellers never waited, with $sold sales");
}
cmp_ok($master->safe_psql('postgres', 'SELECT count(*) FROM sale_line WHERE quantity > 900'), '==', 0, 'what the master refuses is not there');
$master->safe_psql('postgres', 'ALTER TABLE sale_line DROP CONSTRAINT modest');

for my $till (@tills)
{
	my $node = $till->{node};
	my $name = $node->name;
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM synchronize_held'), '>', 0, "$name: some sales are held");
	$node->safe_psql('postgres', "SELECT possync_retry(id) FROM synchronize_quarantine WHERE reason <> 'dependency'");
	is(push_sales($node), 'ok', "$name pushes what was refused");
	is($node->safe_psql('postgres', <<'EOC'), '0|0|0|0', "$name: nothing waits, nothing is pending");
SELECT (SELECT count(*) FROM synchronize_queue), (SELECT count(*) FROM synchronize_held),
	(SELECT count(*) FROM synchronize_quarantine), (SELECT count(*) FROM synchronize_batch)
EOC
	push @here, split /\n/, $node->safe_psql('postgres', $sales);
}
my @there = split /\n/, $master->safe_psql('postgres', $sales);
my %here = map { $_ => 1 } @here;
my %there = map { $_ => 1 } @there;
is(some(grep { !$there{$_} } @here), '', 'every sale is at the master as it was sold');
is(some(grep { !$here{$_} } @there), '', 'and nothing else is there');
is(scalar @there, scalar @here, scalar(@here) . ' sales');
is($master->safe_psql('postgres', $doubled), '', 'none twice');
is($master->safe_psql('postgres', $broken), '', 'all add up');

# Translations lead to the same rows.
my %rows = (
	sale => 'number', customer => 'code', product => 'sku',
	sale_line => "(SELECT number FROM sale WHERE id = sale) || ' ' || position",
	payment => "(SELECT number FROM sale WHERE id = sale) || ' ' || kind");
for my $table (sort keys %rows)
{
	my %number = map { split /\|/, $_, 2 } split /\n/, $master->safe_psql('postgres', "SELECT id, $rows{$table} FROM $table");
	for my $till (@tills)
	{
		my @wrong = grep {
			my ($key, $name) = split /\|/, $_, 2;
			($number{$key} // '') ne $name
		} split /\n/, $till->{node}->safe_psql('postgres', <<"EOC");
SELECT coalesce(remote_key::text, 'none'), n.name FROM (SELECT id, $rows{$table} AS name FROM $table) n
LEFT JOIN synchronize_translation t ON t.local_key = n.id
	AND t.model = (SELECT id FROM synchronize_model WHERE name = '$table')
WHERE t.model IS NOT NULL OR '$table' NOT IN ('product', 'customer')
EOC
		is(some(@wrong), '', $till->{node}->name . ": every $table is the one at the master");
	}
}

done_testing();
