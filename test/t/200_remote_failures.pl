# The remote fails in every way there is.  Each time the run is recorded as
# failed with what the remote said, nothing else has changed here, and the next
# pull after the cause is gone is complete.

use strict;
use warnings FATAL => 'all';

use Possync;
use PostgreSQL::Test::Utils;
use Test::More;

# A sequence made in the transaction that fills it is not always right after a
# crash at wal_level minimal.
my $master = Possync->cluster('master', 'wal_level = replica');
my $till = Possync->cluster('till', "log_min_messages = debug1\nlog_statement = none\n");
my $proxy = Possync::Proxy->new($master->port);
my $catalogue = "SELECT * FROM catalogue WHERE what NOT LIKE 'price%' ORDER BY what, key";

# A word that must not be found in any log or table.
my $password = 'Zq7-' . int(rand(1e9)) . '-secret';

shop($master, products => 200, first_key => 1000001, office => 'on');
shop($till, products => 20);
$master->safe_psql('postgres', "ALTER ROLE clerk PASSWORD '$password'");
connect_till($till, $proxy->port);
$till->safe_psql('postgres', <<"EOC");
ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET password '$password');
ALTER SERVER hq OPTIONS (connect_timeout '2', statement_timeout '2s');
SELECT * FROM possync_add_model('product', server => 'hq');
SELECT possync_set_field('unit', 'symbol', match => true);
EOC
is(pull(), 'ok', 'first pull');

sub pull
{
	return $till->safe_psql('postgres', "SELECT status FROM possync_pull('product')");
}

# Something to pull in every table of the tree.
my $step = 0;

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

# Breaks something, pulls, and puts it right again.  %expect: sqlstate, and
# patterns for error, detail, hint, context.
sub fails
{
	my ($name, $break, $mend, %expect) = @_;

	subtest $name => sub {
		change();
		my $before = content($till);
		$break->();
		my ($out, $err) = ('', '');
		$till->psql('postgres', <<'EOC', stdout => \$out, stderr => \$err);
SELECT row_to_json(h) FROM possync_pull('product') h
EOC
		is(content($till), $before, 'nothing changed');
		like($err, qr/WARNING:  pull of "product" failed/, 'a warning');
		is($till->safe_psql('postgres', 'SELECT row_to_json(h) FROM synchronize_history h ORDER BY id DESC LIMIT 1'),
			$out, 'history says what was returned');

		$expect{status} = qr/^failed$/;
		my $row = $till->safe_psql('postgres', <<'EOC');
SELECT concat_ws(E'\x01', status, sqlstate, coalesce(error, ''), coalesce(error_detail, ''),
	coalesce(error_hint, ''), coalesce(error_context, ''), finished_at IS NOT NULL)
FROM synchronize_history ORDER BY id DESC LIMIT 1
EOC
		my %got;
		@got{qw(status sqlstate error detail hint context finished)} = split /\x01/, $row;
		like($got{$_}, $expect{$_}, $_) for sort keys %expect;

		($out, $err) = ('', '');
		$till->psql('postgres', "SELECT possync_pull('product', on_error => 'raise')",
			stdout => \$out, stderr => \$err);
		like($err, qr/ERROR:  /, 'raised as an error') unless $expect{once};
		is(content($till), $before, 'nothing changed again') unless $expect{once};

		$mend->();
		is(pull(), 'ok', 'the next one succeeds');
		is_same($master, $till, $catalogue, 'and is complete');
	};
	return;
}

# Runs SQL at the master, the till.
sub master { my @sql = @_; return sub { $master->safe_psql('postgres', $_) for @sql } }
sub till { my @sql = @_; return sub { $till->safe_psql('postgres', $_) for @sql } }
my $pass = sub { $proxy->cut; $proxy->pass };
my $connect = qr/^could not connect to server "hq"/;

# Getting there
fails('down', sub { $proxy->down }, $pass,
	sqlstate => qr/^08001$/, error => $connect, detail => qr/refused/s);
fails('wrong password',
	till("ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET password 'Zq7-no')"),
	till("ALTER USER MAPPING FOR CURRENT_USER SERVER hq OPTIONS (SET password '$password')"),
	sqlstate => qr/^28P01$/, error => $connect, detail => qr/password authentication failed for user "clerk"/s);
fails('unknown host',
	till("ALTER SERVER hq OPTIONS (SET host 'no-such-host.invalid')"),
	till("ALTER SERVER hq OPTIONS (SET host '127.0.0.1')"),
	sqlstate => qr/^08001$/, error => $connect, detail => qr/no-such-host\.invalid/s);
fails('unknown database',
	till("ALTER SERVER hq OPTIONS (SET dbname 'nowhere')"),
	till("ALTER SERVER hq OPTIONS (SET dbname 'postgres')"),
	sqlstate => qr/^3D000$/, error => $connect, detail => qr/database "nowhere" does not exist/s);
fails('wrong port',
	till("ALTER SERVER hq OPTIONS (SET port '1')"),
	till("ALTER SERVER hq OPTIONS (SET port '" . $proxy->port . "')"),
	sqlstate => qr/^08001$/, error => $connect, detail => qr/refused/s);
fails('nothing answers', sub { $proxy->blackhole }, $pass,
	sqlstate => qr/^08001$/, error => $connect, detail => qr/within 2 seconds/, hint => qr/connect_timeout/);
fails('no connection left',
	master('ALTER ROLE clerk CONNECTION LIMIT 0'), master('ALTER ROLE clerk CONNECTION LIMIT -1'),
	sqlstate => qr/^53300$/, error => $connect, detail => qr/too many connections for role "clerk"/s);
fails('no answer, for less than a second',
	sub { $proxy->blackhole; $till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET connect_timeout '400ms')") },
	sub { $pass->(); $till->safe_psql('postgres', "ALTER SERVER hq OPTIONS (SET connect_timeout '2')") },
	sqlstate => qr/^08001$/, error => $connect, detail => qr/within 400 ms/, hint => qr/connect_timeout/);
fails('may not connect',
	master('ALTER ROLE clerk NOLOGIN'), master('ALTER ROLE clerk LOGIN'),
	sqlstate => qr/^28000$/, error => $connect, detail => qr/not permitted to log in/s);
fails('the master is stopped', sub { $master->stop('immediate') }, sub { $master->start },
	sqlstate => qr/^08001$/, error => $connect);

# What is there is not what was expected
my $misfit = qr/^model "product" and the tables of server "hq" do not fit together$/;
fails('table missing',
	master('ALTER TABLE barcode RENAME TO gone'), master('ALTER TABLE gone RENAME TO barcode'),
	sqlstate => qr/^55000$/, error => $misfit, detail => qr/remote table public\.barcode does not exist/, hint => qr/possync_set_model/);
fails('columns missing',
	master('ALTER TABLE template RENAME list_price TO gone',
		'ALTER TABLE tax RENAME name TO gone'),
	master('ALTER TABLE template RENAME gone TO list_price',
		'ALTER TABLE tax RENAME gone TO name'),
	sqlstate => qr/^55000$/, error => $misfit, detail => qr/column "list_price".*not exist.*\n?.*|column "name"/);
fails('permission denied on a table',
	master('REVOKE pg_read_all_data FROM clerk',
		'GRANT SELECT ON ALL TABLES IN SCHEMA public TO clerk',
		'REVOKE SELECT ON template FROM clerk'),
	master('REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM clerk', 'GRANT pg_read_all_data TO clerk'),
	sqlstate => qr/^(55000|42501)$/, detail => qr/permission denied.*template/);
fails('permission denied on a column',
	master('REVOKE pg_read_all_data FROM clerk',
		'GRANT SELECT ON ALL TABLES IN SCHEMA public TO clerk',
		'REVOKE SELECT ON template FROM clerk',
		'GRANT SELECT (id, code, name, category, tax, sale_unit, purchase_unit, attributes, active, updated_at) ON template TO clerk'),
	master('REVOKE ALL (id, code, name, category, tax, sale_unit, purchase_unit, attributes, active, updated_at) ON template FROM clerk',
		'REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM clerk', 'GRANT pg_read_all_data TO clerk'),
	sqlstate => qr/^(55000|42501)$/, detail => qr/permission denied for column "list_price" of remote table public\.template/);
fails('permission denied on a schema',
	master('REVOKE pg_read_all_data FROM clerk', 'REVOKE USAGE ON SCHEMA public FROM PUBLIC'),
	master('GRANT pg_read_all_data TO clerk', 'GRANT USAGE ON SCHEMA public TO PUBLIC'),
	sqlstate => qr/^(55000|42501)$/, detail => qr/permission denied for schema/);
fails('row security that fails',
	master('CREATE FUNCTION deny() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN'
		. q{ RAISE 'not for you' USING ERRCODE = 'P0042', DETAIL = 'a detail', HINT = 'a hint'; END $$},
		'CREATE POLICY p ON barcode USING (deny())', 'ALTER TABLE barcode ENABLE ROW LEVEL SECURITY'),
	master('ALTER TABLE barcode DISABLE ROW LEVEL SECURITY', 'DROP POLICY p ON barcode', 'DROP FUNCTION deny'),
	sqlstate => qr/^P0042$/, error => qr/^not for you$/, detail => qr/^a detail$/, hint => qr/^a hint$/,
	context => qr/function \S*deny\(\).*remote SQL command: .*barcode.*server "hq"/s);
fails('a value that cannot be read',
	master('ALTER TABLE barcode RENAME TO hidden',
		'CREATE VIEW barcode AS SELECT id, product, code, CASE WHEN id % 7 = 3 THEN updated_at + 1/(id-id) * interval $$1 s$$ ELSE updated_at END AS updated_at FROM hidden'),
	master('DROP VIEW barcode', 'ALTER TABLE hidden RENAME TO barcode'),
	sqlstate => qr/^22012$/, error => qr/division by zero/, context => qr/remote SQL command: .*barcode/s);

# Slow for ever
{
	my $blocker;
	fails('a lock that is never released',
		sub {
			$blocker = Possync::Session->new($master);
			$blocker->run('BEGIN; LOCK TABLE template');
		},
		sub { $blocker->run('ROLLBACK'); $blocker->quit },
		sqlstate => qr/^(55P03|HV00L)$/, error => qr/lock timeout|statement timeout/,
		context => qr/remote SQL command.*server "hq"/s);
}

# At the end nobody is left behind
$master->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'clerk'");
is($master->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE usename = 'clerk'"),
	'0', 'no session is left at the master');
unlike(slurp_file($_->logfile), qr/Zq7-(?!no')[^']*secret(?!')/, 'no password in the log of ' . $_->name)
  for $master;
unlike(slurp_file($till->logfile), qr/\Q$password\E/, 'no password in the log of the till');
unlike(slurp_file($till->logfile), qr/leak|PANIC|TRAP/, 'nothing leaked');
is($till->safe_psql('postgres', "SELECT count(*) FROM synchronize_history h WHERE h::text LIKE '%Zq7%'"),
	'0', 'nor in history');

done_testing();
