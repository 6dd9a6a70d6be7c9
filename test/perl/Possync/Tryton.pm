
=head1 NAME

Possync::Tryton - a Tryton server with a company, for tests

=head1 SYNOPSIS

  my $erp = Possync::Tryton->new('erp');

  my $ids = $erp->call('model.party.party.create', [ { name => 'Walk-in' } ]);
  $erp->sql('SELECT count(*) FROM sale_sale');
  $erp->kill9;               # the server dies in the middle of its calls
  $erp->start;
  $erp->database->stop('immediate');
  $erp->connect_till($till, port => $proxy->port);

=head1 DESCRIPTION

A real trytond on 127.0.0.1 before a PostgreSQL of its own.  The first test that
comes makes the database with its modules, company, accounts, a product and a
customer, which takes a minute; the others copy it.  POSSYNC_TRYTON_TEMPLATE names a
directory where it is kept between runs, for who writes a test.

=cut

package Possync::Tryton;

use strict;
use warnings FATAL => 'all';

use Fcntl qw(:flock);
use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP;
use MIME::Base64;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $json = JSON::PP->new->utf8->allow_nonref->canonical;
my $password = 'admin12345';
my @running;

# Whether Debian's packages are there
sub installed
{
	return -x '/usr/bin/trytond' && -x '/usr/bin/trytond-admin';
}

# Returns a running server with a database of its own.  Options: ssl, names of key
# and certificate
sub new
{
	my ($class, $name, %options) = @_;
	my $self = bless { name => $name, database => 'shop', %options }, $class;
	my $template = $ENV{POSSYNC_TRYTON_TEMPLATE} // "$PostgreSQL::Test::Utils::tmp_check/tryton";

	$self->{node} = PostgreSQL::Test::Cluster->new($name);
	open my $lock, '>', "$template.lock" or die "$template.lock: $!";
	flock $lock, LOCK_EX or die "flock: $!";
	make_template($self->{node}, $template) if !-d $template;
	close $lock;

	my $node = $self->{node};
	if (!-d $node->data_dir)
	{
		mkdir $_ for $node->backup_dir, $node->archive_dir;
		system_or_bail('cp', '-a', $template, $node->data_dir);
		$node->append_conf('postgresql.conf',
			'port = ' . $node->port . "\nunix_socket_directories = '" . $node->host . "'");
	}
	$node->start if !$node->{_pid};
	$self->{port} = PostgreSQL::Test::Cluster::get_free_port();
	$self->start;
	return $self;
}

sub database { return $_[0]{node} }
sub port     { return $_[0]{port} }

# The database cluster stays stopped with all that a server needs.
sub make_template
{
	my ($node, $template) = @_;
	my $maker = bless { name => 'maker', database => 'shop', node => $node }, __PACKAGE__;

	$node->init;
	$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
	$node->start;
	$node->safe_psql('postgres', 'CREATE DATABASE shop');
	# it asks the information schema a thousand times
	$node->safe_psql('postgres', "ALTER DATABASE shop SET $_")
	  for 'join_collapse_limit = 4', 'from_collapse_limit = 4', 'jit = off';
	$maker->{port} = PostgreSQL::Test::Cluster::get_free_port();
	$maker->run('/usr/bin/trytond-admin', '-d', 'shop', '-u', 'sale', '--activate-dependencies',
		'--email', 'a@example.com');
	$node->safe_psql('postgres', 'ALTER DATABASE shop RESET ALL');
	$node->safe_psql('shop', 'ANALYZE');
	$maker->start;
	$maker->set_up;
	$maker->stop;
	$node->stop;
	system_or_bail('cp', '-a', $node->data_dir, "$template.new");
	rename "$template.new", $template or die "rename: $!";
	return;
}

# Writes the server's configuration; returns the names of the files.
sub configure
{
	my ($self) = @_;
	my $base = $self->{node}->basedir;
	my ($conf, $pass) = ("$base/trytond.conf", "$base/pass");

	mkdir "$base/files";
	open my $file, '>', $conf or die "$conf: $!";
	print $file <<"EOC";
[web]
listen = 127.0.0.1:$self->{port}
root =
[database]
uri = postgresql://@{[ scalar getpwuid $< ]}\@127.0.0.1:@{[ $self->{node}->port ]}/
path = $base/files
minconn = 4
[session]
max_attempt = @{[ $self->{max_attempt} // 5 ]}
EOC
	print $file "[ssl]\nprivatekey = $self->{ssl}[0]\ncertificate = $self->{ssl}[1]\n" if $self->{ssl};
	close $file;
	open $file, '>', $pass or die "$pass: $!";
	print $file "$password\n";
	close $file;
	return ($conf, $pass);
}

# Runs one of Tryton's programs to its end, or, if told so, without waiting.
sub run
{
	my ($self, $program, @arguments) = @_;
	my $pid = $self->launch($program, @arguments);

	waitpid $pid, 0;
	die "$program failed: " . slurp_file($self->log) if $? != 0;
	return;
}

sub log { return $PostgreSQL::Test::Utils::log_path . "/$_[0]{name}_trytond.log" }

sub launch
{
	my ($self, $program, @arguments) = @_;
	my ($conf, $pass) = $self->configure;
	my $log = $self->log;
	my $pid = fork() // die "fork: $!";

	return $pid if $pid;
	local @ENV{qw(TRYTOND_CONFIG TRYTONPASSFILE)} = ($conf, $pass);
	open STDIN, '<', '/dev/null';
	open STDOUT, '>>', $log;
	open STDERR, '>>', $log;
	{ no warnings; exec '/usr/bin/python3', $program, '-c', $conf, @arguments }
	POSIX::_exit(127);
}

# Starts the server and waits until it answers.
sub start
{
	my ($self) = @_;

	$self->{pid} = $self->launch('/usr/bin/trytond', '-d', $self->{database});
	push @running, $self;
	for (1 .. 600)
	{
		my $answer = HTTP::Tiny->new(timeout => 5)->post("http://127.0.0.1:$self->{port}/",
			{ headers => { 'Content-Type' => 'application/json' },
				content => '{"id":0,"method":"common.server.version","params":[]}' });
		return if $answer->{success};
		# who does not speak HTTP there is up, too
		return if $self->{ssl} && IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port});
		die 'trytond ended: ' . slurp_file($self->log) if waitpid($self->{pid}, POSIX::WNOHANG()) != 0;
		sleep 0.1;
	}
	die 'trytond does not answer';
}

sub end
{
	my ($self, $signal) = @_;

	return if !$self->{pid};
	kill $signal, $self->{pid};
	local $?;
	waitpid $self->{pid}, 0;
	undef $self->{pid};
	return;
}

sub stop  { return $_[0]->end('TERM') }
sub kill9 { return $_[0]->end('KILL') }

END { $_->end('KILL') for @running }

# Sends a request; returns what comes back, dies of an error.
sub post
{
	my ($self, $method, $params, $authorization) = @_;
	my %headers = ('Content-Type' => 'application/json');
	$headers{Authorization} = $authorization if $authorization;
	my $answer = HTTP::Tiny->new(timeout => 300)->post(
		"http://127.0.0.1:$self->{port}/$self->{database}/",
		{ headers => \%headers, content => $json->encode({ id => 1, method => $method, params => $params }) });

	die "$method: $answer->{status} $answer->{content}" if $answer->{status} != 200;
	my $result = $json->decode($answer->{content});
	die "$method: " . $json->encode($result->{error}) if exists $result->{error};
	return $result->{result};
}

# Calls a method as the administrator, and returns its result.
sub call
{
	my ($self, $method, @arguments) = @_;

	if (!$self->{authorization})
	{
		my $login = $self->post('common.db.login', [ 'admin', { password => $password }, 'en' ]);
		$self->{authorization} = 'Session ' . encode_base64("admin:$login->[0]:$login->[1]", '');
		$self->{context} //= { company =>
			$self->post('model.res.user.get_preferences', [ JSON::PP::true, {} ], $self->{authorization})->{company} };
	}
	return $self->post($method, [ @arguments, $self->{context} // {} ], $self->{authorization});
}

sub decimal { return { __class__ => 'Decimal', decimal => $_[0] } }
sub date { return { __class__ => 'date', year => 0 + $_[0], month => 0 + $_[1], day => 0 + $_[2] } }

# The result of a query in the server's database
sub sql
{
	my ($self, $query) = @_;
	return $self->{node}->safe_psql($self->{database}, $query);
}

# Makes possync in a database of a till and the server "erp".
sub connect_till
{
	my ($self, $till, %options) = @_;
	my $port = delete $options{port} // $self->{port};
	my $dbname = delete $options{dbname} // 'postgres';
	my $user = delete $options{user} // 'admin';
	my $secret = delete $options{password} // $password;
	my $more = join '', map { ", $_ '$options{$_}'" } sort keys %options;

	$till->safe_psql($dbname, <<"EOC");
CREATE EXTENSION IF NOT EXISTS possync;
CREATE SERVER erp FOREIGN DATA WRAPPER possync_tryton
	OPTIONS (url 'http://127.0.0.1:$port', database '$self->{database}'$more);
CREATE USER MAPPING FOR CURRENT_USER SERVER erp
	OPTIONS (user '$user', password '$secret');
EOC
	return;
}

# Tables of a till for sales with their lines and what they refer to, queued for
# pushing to the server "erp", and what has to be there for them.
sub sales_tables
{
	my ($self, $till, $dbname) = @_;

	$till->safe_psql($dbname // 'postgres', <<'EOC');
CREATE TABLE party_party (id serial PRIMARY KEY, code text UNIQUE NOT NULL, name text);
CREATE TABLE product_uom_category (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE product_uom (id serial PRIMARY KEY, name text NOT NULL, symbol text, factor float8, rate float8,
	digits integer, category integer NOT NULL REFERENCES product_uom_category);
CREATE TABLE product_template (id serial PRIMARY KEY, name text NOT NULL, code text,
	default_uom integer NOT NULL REFERENCES product_uom);
CREATE TABLE product_product (id serial PRIMARY KEY, template integer NOT NULL REFERENCES product_template);
CREATE TABLE sale_sale (id serial PRIMARY KEY, reference text UNIQUE NOT NULL,
	party integer NOT NULL REFERENCES party_party, sale_date date, comment text);
CREATE TABLE sale_line (id serial PRIMARY KEY, sale integer NOT NULL REFERENCES sale_sale ON DELETE CASCADE,
	sequence integer NOT NULL, type text NOT NULL DEFAULT 'line', product integer REFERENCES product_product,
	unit integer REFERENCES product_uom, quantity float8, unit_price numeric(16,4), UNIQUE (sale, sequence));
SELECT setval(c::regclass, 1000) FROM unnest('{party_party_id_seq,product_product_id_seq,sale_sale_id_seq,
	sale_line_id_seq}'::text[]) c;
SELECT * FROM possync_add_model('sale_sale', 'erp');
SELECT * FROM possync_pull('party_party', on_error => 'raise');
SELECT * FROM possync_pull('product_product', on_error => 'raise');
SELECT possync_queue('sale_sale');

-- Rings up a sale of so many lines; returns its number.
CREATE FUNCTION sell(reference text, lines integer) RETURNS integer LANGUAGE sql AS $$
	WITH head AS (INSERT INTO sale_sale (reference, party, sale_date, comment)
		SELECT $1, id, current_date, 'sold' FROM party_party WHERE code = 'WALKIN' RETURNING id),
	body AS (INSERT INTO sale_line (sale, sequence, product, unit, quantity, unit_price)
		SELECT h.id, n, p.id, t.default_uom, n, 2.5 * n
		FROM head h, generate_series(1, $2) n, LATERAL (SELECT min(id) AS id FROM product_product) p,
			product_template t WHERE t.id = (SELECT template FROM product_product WHERE id = p.id))
	SELECT id FROM head
$$;
EOC
	return;
}

# A company with accounts, a product in two variants, and a customer
sub set_up
{
	my ($self) = @_;
	my $year = 1900 + (localtime)[5];
	my $first = sub { $self->call(@_)->[0] };
	my $find = sub {
		my ($model, $domain) = @_;
		return $self->call("model.$model.search", $domain, 0, undef, undef)->[0];
	};

	my $currency = $first->('model.currency.currency.create', [ {
		name => 'Euro', code => 'EUR', symbol => 'E', digits => 2, rounding => decimal('0.01'),
		rates => [ [ 'create', [ { date => date(2000, 1, 1), rate => decimal('1.0') } ] ] ] } ]);
	my $party = $first->('model.party.party.create',
		[ { name => 'My Shop', addresses => [ [ 'create', [ {} ] ] ] } ]);
	my $company = $first->('model.company.company.create', [ { party => $party, currency => $currency } ]);
	$self->call('model.res.user.write', [1], { companies => [ [ 'add', [$company] ] ], company => $company });
	$self->{context} = { company => $company };

	my $chart = $find->('account.account.template', [ [ 'parent', '=', undef ] ]);
	my ($wizard) = @{ $self->call('wizard.account.create_chart.create') };
	my $step = sub { $self->call('wizard.account.create_chart.execute', $wizard, @_) };
	$step->({}, 'account');
	$step->({ account => { company => $company, account_template => $chart } }, 'create_account');
	my %account = map {
		my $kind = $_;
		($kind => $find->('account.account', [ [ "type.$kind", '=', JSON::PP::true ], [ 'company', '=', $company ] ]))
	} qw(receivable payable revenue expense);
	$step->({ properties => { company => $company, account_receivable => $account{receivable},
		account_payable => $account{payable} } }, 'create_properties');
	$self->call('wizard.account.create_chart.delete', $wizard);

	my $moves = $find->('ir.sequence.type', [ [ 'name', '=', 'Account Move' ] ]);
	my $invoices = $find->('ir.sequence.type', [ [ 'name', '=', 'Invoice' ] ]);
	my $sequence = $first->('model.ir.sequence.create',
		[ { name => 'moves', sequence_type => $moves, company => $company } ]);
	my $strict = $first->('model.ir.sequence.strict.create',
		[ { name => 'invoices', sequence_type => $invoices, company => $company } ]);
	my $fiscal = $first->('model.account.fiscalyear.create', [ {
		name => "$year", company => $company, start_date => date($year, 1, 1), end_date => date($year, 12, 31),
		post_move_sequence => $sequence, invoice_sequences => [ [ 'create', [ { company => $company,
			map { ($_ . '_sequence' => $strict) } qw(out_invoice in_invoice out_credit_note in_credit_note) } ] ] ] } ]);
	$self->call('model.account.fiscalyear.create_period', [$fiscal]);

	my $term = $first->('model.account.invoice.payment_term.create',
		[ { name => 'Direct', lines => [ [ 'create', [ { type => 'remainder' } ] ] ] } ]);
	my $goods = $first->('model.product.category.create', [ { name => 'Goods', accounting => JSON::PP::true,
		account_revenue => $account{revenue}, account_expense => $account{expense} } ]);
	my $drinks = $first->('model.product.category.create', [ { name => 'Drinks' } ]);
	my $unit = $find->('product.uom', [ [ 'symbol', '=', 'u' ] ]);
	$self->call('model.product.template.create', [ { name => 'Coffee', code => 'COF', type => 'goods',
		default_uom => $unit, list_price => decimal('2.50'), salable => JSON::PP::true, sale_uom => $unit,
		account_category => $goods, categories => [ [ 'add', [$drinks] ] ],
		products => [ [ 'create', [ { suffix_code => '1' }, { suffix_code => '2' } ] ] ] } ]);
	$self->call('model.party.party.create', [ { name => 'Walk-in customer', code => 'WALKIN',
		addresses => [ [ 'create', [ { street => 'Main St 1', city => 'Town' } ] ] ] } ]);
	return;
}

1;
