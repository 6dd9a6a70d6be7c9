# A server that is not what it should be: wrong answers of every kind give errors,
# soon, and nothing else; nor does a byte anywhere that is not what it was.
# POSSYNC_FUZZ=n mutates n answers, POSSYNC_SEED=n repeats a run.

use strict;
use warnings FATAL => 'all';

use IO::Compress::Gzip qw(gzip);
use IO::Socket::INET;
use JSON::PP;
use Possync;
use Possync::Tryton;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $seed = $ENV{POSSYNC_SEED} // int(rand(1_000_000));
my $mutations = $ENV{POSSYNC_FUZZ} // 250;
note("POSSYNC_SEED=$seed");

my $json = JSON::PP->new->canonical->allow_nonref;
my $modes = PostgreSQL::Test::Utils::tempdir() . '/mode';

# What a good server says to each method
my %field = (searchable => JSON::PP::true, sortable => JSON::PP::true, readonly => JSON::PP::false);
my %good = (
	'common.db.login' => [ 1, 'a' x 64 ],
	'model.res.user.get_preferences' => { company => 1, language => 'en' },
	'model.ir.lang.search_read' => [ { id => 1, create_date => { __class__ => 'datetime', year => 2026 } } ],
	'model.product.fields_get' => {
		map { ($_->[0] => { %field, name => $_->[0], type => $_->[1], string => $_->[0] }) }
		  [ id => 'integer' ], [ name => 'char' ], [ price => 'numeric' ], [ made => 'timestamp' ],
		[ flag => 'boolean' ], [ blob => 'binary' ], [ day => 'date' ] },
	'model.product.search_read' => [
		map {
			{ id => $_, name => "product $_ \x{20ac}", price => { __class__ => 'Decimal', decimal => "$_.50" },
				flag => JSON::PP::true, blob => { __class__ => 'bytes', base64 => "aGVsbG8=\n" },
				day => { __class__ => 'date', year => 2026, month => 1, day => 31 },
				made => { __class__ => 'datetime', year => 2026, month => 1, day => 31, hour => 23, minute => 59,
					second => 58, microsecond => 123456 }, _timestamp => "17954892$_.813045" }
		} 10 .. 29 ]);
my %id;

sub say_http
{
	my ($socket, $status, $body, @headers) = @_;
	print $socket join("\r\n", "HTTP/1.1 $status Whatever", 'Content-Type: application/json',
		'Connection: close', 'Content-Length: ' . length($body), @headers, '', $body);
	return;
}

sub result { return $json->ascii->encode({ id => $_[0], result => $_[1] }) }

# Answers that no good server gives to a search, by name
my %evil = (
	redirect => sub { say_http($_[0], 302, '', 'Location: http://127.0.0.1:1/elsewhere') },
	'not json' => sub { say_http($_[0], 200, '<html>no</html>') },
	nothing => sub { say_http($_[0], 200, '') },
	'zero byte' => sub { say_http($_[0], 200, "{\"id\":$_[1],\0\"result\":[]}") },
	'bad utf8' => sub { say_http($_[0], 200, "{\"id\":$_[1],\"result\":[{\"id\":1,\"name\":\"\xff\xfe\"}]}") },
	surrogate => sub { say_http($_[0], 200, "{\"id\":$_[1],\"result\":[{\"id\":1,\"name\":\"\\ud800\"}]}") },
	'no envelope' => sub { say_http($_[0], 200, '[1,2,3]') },
	'other id' => sub { say_http($_[0], 200, result(-1, [])) },
	'string id' => sub { say_http($_[0], 200, result('x', [])) },
	number => sub { say_http($_[0], 200, result($_[1], 7)) },
	'null' => sub { say_http($_[0], 200, result($_[1], undef)) },
	object => sub { say_http($_[0], 200, result($_[1], { a => 1 })) },
	'rows of numbers' => sub { say_http($_[0], 200, result($_[1], [ 1, 2 ])) },
	'no id' => sub { say_http($_[0], 200, result($_[1], [ { name => 'x' } ])) },
	'a string for an id' => sub { say_http($_[0], 200, result($_[1], [ { id => '1' } ])) },
	'a huge id' => sub { say_http($_[0], 200, "{\"id\":$_[1],\"result\":[{\"id\":1e300}]}") },
	'fields missing' => sub { say_http($_[0], 200, result($_[1], [ { id => 1, _timestamp => '1.0' } ])) },
	'odd stamp' => sub { say_http($_[0], 200, result($_[1], [ { id => 1, _timestamp => 'soon' } ])) },
	'too many rows' => sub { say_http($_[0], 200, result($_[1], [ map { { id => $_ } } 1 .. 200 ])) },
	'the same page for ever' => sub { say_http($_[0], 200, result($_[1], [ ({ id => 1, name => 'x' }) x 100 ])) },
	'deep lists' => sub { say_http($_[0], 200, "{\"id\":$_[1],\"result\":" . '[' x 200_000 . ']' x 200_000 . '}') },
	'deep objects' => sub { say_http($_[0], 200, "{\"id\":$_[1],\"result\":" . '{"a":' x 200_000 . '1' . '}' x 200_000 . '}') },
	'never ending number' => sub { say_http($_[0], 200, "{\"id\":$_[1],\"result\":[{\"id\":" . '9' x 900_000 . '}]}') },
	'error without text' => sub { say_http($_[0], 200, $json->encode({ id => $_[1], error => [] })) },
	'error of numbers' => sub { say_http($_[0], 200, $json->encode({ id => $_[1], error => [ 1, [ 2 ] ] })) },
	'error of nothing' => sub { say_http($_[0], 200, $json->encode({ id => $_[1], error => undef })) },
	'an error' => sub { say_http($_[0], 200, $json->encode({ id => $_[1], error => [ 'UserError', [ 'so not', 'because', undef ] ] })) },
	'a warning' => sub { say_http($_[0], 200, $json->encode({ id => $_[1], error => [ 'UserWarning', [ 'w', 'sure?', '' ] ] })) },
	'status 500' => sub { say_http($_[0], 500, 'x' x 1000) },
	'status 403' => sub { say_http($_[0], 403, '') },
	'status 401' => sub { say_http($_[0], 401, '') },
	'status 999' => sub { say_http($_[0], 999, '') },
	'no http' => sub { print { $_[0] } "hello\r\n\r\n" },
	'cut' => sub { print { $_[0] } "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"id\"" },
	'endless answer' => sub {
		my $socket = $_[0];
		print $socket "HTTP/1.1 200 OK\r\n\r\n";
		for (1 .. 100_000) { print $socket ' ' x 65536 or last }
	},
	'endless headers' => sub {
		my $socket = $_[0];
		print $socket "HTTP/1.1 200 OK\r\n";
		for (1 .. 1_000_000) { print $socket "X-$_: y\r\n" or last }
	},
	'bomb' => sub {
		my $zeros = ' ' x 50_000_000;
		gzip \$zeros => \my $small;
		say_http($_[0], 200, $small, 'Content-Encoding: gzip');
	},
	'a byte a second' => sub {
		my $socket = $_[0];
		print $socket "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
		$socket->flush;
		for (1 .. 30) { print $socket ' ' or last; $socket->flush; sleep 1 }
	},
	'silence' => sub { sleep 30 });

sub serve
{
	my ($listener) = @_;
	my $n = 0;
	srand($seed);
	local $SIG{PIPE} = 'IGNORE';
	local $SIG{CHLD} = 'IGNORE';
	while (my $socket = $listener->accept)
	{
		my ($length, $headers) = (0, '');
		while (defined(my $line = <$socket>))
		{
			$length = $1 if $line =~ /^content-length: (\d+)/i;
			last if $line =~ /^\r?\n/;
		}
		my $body = '';
		read $socket, $body, $length;
		my $request = eval { $json->decode($body) } // {};
		my ($method, $id) = ($request->{method} // '', $request->{id} // 0);
		my $mode = slurp_file($modes);

		$socket->autoflush(1);
		if ($mode =~ /^fuzz/)
		{
			my $later = $method =~ /search_read/ && grep { ref $_ && $_->[0] eq 'id' && $_->[1] eq '>' } @{ $request->{params}[0] };
			my $answer = result($id, $later ? [] : $good{$method});
			$answer = mutate($answer, $n++) if $method !~ /^common/ && rand() < 0.4;
			say_http($socket, 200, $answer);
		}
		elsif ($mode =~ /^login:(.*)/ && $method eq 'common.db.login')
		{
			say_http($socket, $1, '');
		}
		elsif ($method eq 'model.product.search_read' && $evil{$mode})
		{
			# those that take their time must not keep others waiting
			my $pid = fork() // die;
			if ($pid == 0)
			{
				$evil{$mode}->($socket, $id);
				close $socket;
				POSIX::_exit(0);
			}
		}
		else
		{
			# there is one page
			my $later = $method =~ /search_read/ && grep { ref $_ && $_->[0] eq 'id' && $_->[1] eq '>' } @{ $request->{params}[0] };
			say_http($socket, 200, result($id, $later ? [] : $good{$method}));
		}
		close $socket;
	}
	POSIX::_exit(0);
}

# Does something to an answer.
sub mutate
{
	my ($text) = @_;
	my @tokens = ('{', '}', '[', ']', ',', ':', '"', '\\', 'null', 'NaN', '-Infinity', '1e999', '-0', "\\u0000",
		"\xc3\x28", '__class__', '{"__class__":"Decimal"}', '{"__class__":"datetime","year":-1}', ' ' x 10);
	for (1 .. 1 + int(rand(3)))
	{
		my $at = int(rand(length($text)));
		my $what = int(rand(6));
		substr($text, $at, 1) = chr(int(rand(256))) if $what == 0;
		substr($text, $at, 0) = $tokens[ rand @tokens ] if $what == 1;
		substr($text, $at, int(rand(20))) = '' if $what == 2;
		substr($text, $at) = '' if $what == 3 && rand() < 0.3;
		substr($text, $at, 0) = substr($text, int(rand($at + 1)), int(rand(50))) if $what == 4;
		$text =~ s/(\d+)/$tokens[rand @tokens]/ if $what == 5;
	}
	return $text;
}

sub mode
{
	open my $file, '>', "$modes.new" or die $!;
	print $file $_[0];
	close $file;
	rename "$modes.new", $modes;
	return;
}

mode('good');
my $listener = IO::Socket::INET->new(Listen => 20, LocalAddr => '127.0.0.1', ReuseAddr => 1) or die $!;
my $server = fork() // die;
serve($listener) if $server == 0;
END { kill 'KILL', $server if $server }

my $till = Possync->cluster('till');
my $port = $listener->sockport;
$till->safe_psql('postgres', <<"EOC");
CREATE EXTENSION possync;
CREATE SERVER erp FOREIGN DATA WRAPPER possync_tryton
	OPTIONS (url 'http://127.0.0.1:$port', database 'shop', call_timeout '2s', connect_timeout '2s',
		page_size '100', max_answer '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER erp OPTIONS (user 'admin', password 'topsecret');
CREATE TABLE product (id bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY (START 1000), name text, price numeric(12,2), made timestamptz, flag boolean,
	blob bytea, day date);
EOC
$till->safe_psql('postgres', "SELECT * FROM possync_add_model('product', 'erp')");
my $session = Possync::Session->new($till);
my $everything = '';

sub pull
{
	my $start = time;
	my ($out, $err) = $session->run(
		"SELECT concat_ws('|', status, sqlstate, error, error_detail, error_hint, error_context) FROM possync_pull('product', \"full\" => true)");
	$everything .= ($out // '') . ($err // '');
	return ($out || $err, time - $start);
}

my ($out) = pull();
is($out, 'ok', 'a good server') or diag($out);
is($till->safe_psql('postgres', "SELECT concat_ws('|', name, price, flag, encode(blob, 'escape'), day, made AT TIME ZONE 'UTC') FROM product WHERE name LIKE 'product 10%'"),
	"product 10 \xe2\x82\xac|10.50|t|hello|2026-01-31|2026-01-31 23:59:58.123456", 'what it says');

for my $mode (sort keys %evil)
{
	mode($mode);
	my ($out, $seconds) = pull();
	like($out, qr/^failed\|(?!XX000)/, "$mode: " . ($out =~ s/\n/ /gr));
	cmp_ok($seconds, '<', 6, "$mode: soon told");
	mode('good');
	($out) = pull();
	is($out, 'ok', "$mode: and goes on afterwards") or diag($out);
}
for my $status (401, 404, 429, 500)
{
	mode("login:$status");
	$till->safe_psql('postgres', "ALTER USER MAPPING FOR CURRENT_USER SERVER erp OPTIONS (SET password 'topsecret$status')");
	my ($out) = pull();
	like($out, qr/^failed\|(28P01|3D000|HV000)/, "login $status: $out");
	mode('good');
	$till->safe_psql('postgres', "ALTER USER MAPPING FOR CURRENT_USER SERVER erp OPTIONS (SET password 'topsecret')");
}

# Bytes that are not what they were
mode('fuzz');
my %count;
for my $i (1 .. $mutations)
{
	my ($out) = pull();
	$count{ $out =~ /^(ok|failed)/ ? $1 : $out }++;
	$session->run("SELECT count(*) FROM product") if $i % 50 == 0;
}
note("$_: $count{$_}") for sort keys %count;
is(join(' ', sort keys %count), 'failed ok', 'a changed answer is taken or told, nothing else');
mode('good');
($out) = pull();
is($out, 'ok', 'and all is well afterwards') or diag($out);
unlike($everything, qr/topsecret/, 'no message tells the password');
unlike(slurp_file($till->logfile), qr/terminated by signal|PANIC|TRAP/, 'no process died');

# Options
for (
	[ "url 'ftp://x'" => 'url' ], [ "url 'https://user\@x'" => 'url' ], [ "url ''" => 'url' ], [ "database 'a/b'" => 'database' ],
	[ "page_size '0'" => 'page_size' ], [ "max_answer '1000000'" => 'max_answer' ], [ "overlap '-1'" => 'overlap' ],
	[ "company 'x'" => 'company' ], [ "language 'e\"n'" => 'language' ])
{
	my ($status, $o, $err) = $till->psql('postgres', "CREATE SERVER bad FOREIGN DATA WRAPPER possync_tryton OPTIONS ($_->[0])");
	like($err, qr/ERROR:.*$_->[1]/, "option $_->[0] is refused");
}
like(($till->psql('postgres', "CREATE SERVER bad FOREIGN DATA WRAPPER possync_tryton OPTIONS (pagesize '1')"))[2],
	qr/invalid option "pagesize".*Perhaps you meant the option "page_size"/s, 'a mistyped option');
$till->safe_psql('postgres', "CREATE SERVER poor FOREIGN DATA WRAPPER possync_tryton OPTIONS (url 'x'); CREATE USER MAPPING FOR CURRENT_USER SERVER poor");
like(($till->psql('postgres', "SELECT * FROM possync_remote_models('poor')"))[2], qr/option "database" is missing/, 'a missing one');

done_testing();
