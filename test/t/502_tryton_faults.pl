# Sales pushed to a Tryton server that is killed, whose database stops, and to which
# the connection breaks at any byte: none is lost, none is there twice, none without
# its lines.  POSSYNC_FAULTS=n breaks that often, POSSYNC_SALES=n are sold.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Tryton;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'Tryton is not installed' if !Possync::Tryton::installed();

my $sales = $ENV{POSSYNC_SALES} // 300;
my $faults = $ENV{POSSYNC_FAULTS} // 12;
my $seed = $ENV{POSSYNC_SEED} // int(rand(1_000_000));
srand($seed);
note("POSSYNC_SEED=$seed");

my $erp = Possync::Tryton->new('erp');
my $till = Possync->cluster('till');
my $proxy = Possync::Proxy->new($erp->port);

# No call of so few rows takes longer; what breaks is tried again soon
$erp->connect_till($till, port => $proxy->port, overlap => '2s', call_timeout => '2s',
	connect_timeout => '1s', batch_size => 40);
$erp->sales_tables($till);
$till->append_conf('postgresql.conf', 'possync.batch_entries = 60');
$till->reload;

sub ask { return $till->safe_psql('postgres', $_[0]) }

my $n = 0;
my %seen;

sub sell
{
	my ($more) = @_;
	ask(join '', map { $n++; "SELECT sell('S$n', " . (1 + $n % 3) . ');' } 1 .. $more);
	return;
}

# A push, and what becomes of it
sub push_sales
{
	my ($out) = ask("SELECT concat_ws('|', status, sqlstate, error) FROM possync_push('sale_sale')");
	$seen{ (split /\|/, $out)[0] . ' ' . ((split /\|/, $out)[1] // '') }++;
	return $out;
}

my @kinds = qw(kill stop cut_sent cut hole down);
my $per = int($sales / $faults) || 1;
my $started = time;

for my $i (1 .. $faults)
{
	my $kind = $kinds[ $i % @kinds ];
	sell($per);
	my $session = Possync::Session->new($till);

	# at any moment of a push, or any byte of it
	$proxy->cut_after_sent(int(rand(60_000))) if $kind eq 'cut_sent';
	$proxy->cut_after(int(rand(40_000))) if $kind eq 'cut';
	$proxy->hole_after(int(rand(20_000))) if $kind eq 'hole';
	$session->start_sql("SELECT concat_ws('|', status, sqlstate, error) FROM possync_push('sale_sale')");
	sleep rand(0.6);
	$erp->kill9 if $kind eq 'kill';
	$erp->database->stop('immediate') if $kind eq 'stop';
	$proxy->down if $kind eq 'down';
	my ($out) = $session->answer(60);
	$seen{"$kind: " . join ' ', grep { defined } (split /\|/, $out // 'none')[ 0, 1 ] }++;
	$session->quit;
	$erp->start if $kind eq 'kill';
	$erp->database->start if $kind eq 'stop';
	$proxy->pass;
	push_sales() if rand() < 0.5;
}

# All is well again: sooner or later everything is there
my $left;
for (1 .. 60)
{
	push_sales();
	ask('SELECT possync_retry(id) FROM possync_quarantine');
	$left = ask('SELECT count(*) FROM synchronize_queue');
	last if $left == 0;
	sleep 1;
}
note("$_: $seen{$_}") for sort keys %seen;
note(sprintf '%d sales, %d faults, %.0f s', $n, $faults, time - $started);
is($left, 0, 'nothing is left to push');
is($erp->sql('SELECT count(*) FROM sale_sale'), $n, 'as many sales there as here');
is($erp->sql('SELECT count(DISTINCT reference) FROM sale_sale'), $n, 'none of them twice');
is($erp->sql("SELECT count(*) FROM sale_sale s WHERE (SELECT count(*) FROM sale_line l WHERE l.sale = s.id)
	<> 1 + substr(s.reference, 2)::integer % 3"), 0, 'each has its lines');
is($erp->sql("SELECT count(*) FROM sale_sale s WHERE (SELECT sum(sequence * 1000 + quantity) FROM sale_line l WHERE l.sale = s.id)
	<> (SELECT sum(i * 1001) FROM generate_series(1, 1 + substr(s.reference, 2)::integer % 3) i)"), 0, 'and they are right');
is(ask('SELECT count(*) FROM synchronize_translation WHERE remote_key < 0'), 0, 'no provisional key is left');
is(ask('SELECT count(*) FROM synchronize_batch'), 0, 'nor is a batch open');
my $lines = $erp->sql("SELECT string_agg(l.id || ' ' || s.reference || ' ' || l.sequence, ',' ORDER BY l.id) FROM sale_line l JOIN sale_sale s ON s.id = l.sale");
is(ask("SELECT string_agg(t.remote_key || ' ' || s.reference || ' ' || l.sequence, ',' ORDER BY t.remote_key)
	FROM sale_line l JOIN sale_sale s ON s.id = l.sale JOIN synchronize_translation t ON t.local_key = l.id
		AND t.model = (SELECT id FROM synchronize_model WHERE name = 'sale_line')"), $lines, 'every line is linked with its own');
cmp_ok(scalar(grep { /failed/ } keys %seen), '>', 0, 'something did go wrong');

done_testing();
