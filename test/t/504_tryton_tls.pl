# The connection to a Tryton server is encrypted, and its certificate looked at.

use strict;
use warnings FATAL => 'all';

use Possync;
use Possync::Tryton;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'Tryton is not installed' if !Possync::Tryton::installed();

my $directory = PostgreSQL::Test::Utils::tempdir();
my ($key, $certificate) = ("$directory/key.pem", "$directory/certificate.pem");
for my $name ('other', '')
{
	system_or_bail('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=till',
		'-addext', $name ? 'subjectAltName=DNS:elsewhere.example' : 'subjectAltName=IP:127.0.0.1',
		'-keyout', "$key$name", '-out', "$certificate$name");
}

my $erp = Possync::Tryton->new('erp', ssl => [ $key, $certificate ]);
my $till = Possync->cluster('till');
my $port = $erp->port;
$till->safe_psql('postgres', <<"EOC");
CREATE EXTENSION possync;
CREATE SERVER erp FOREIGN DATA WRAPPER possync_tryton OPTIONS (url '127.0.0.1:$port', database 'shop', connect_timeout '5s');
CREATE USER MAPPING FOR CURRENT_USER SERVER erp OPTIONS (user 'admin', password 'admin12345');
EOC

sub models
{
	my ($status, $out, $err) = $till->psql('postgres', "SELECT count(*) > 100 FROM possync_remote_models('erp')");
	return $out || $err;
}

like(models(), qr/could not connect to server "erp".*certificate/s, 'a certificate that nobody vouches for');
$till->safe_psql('postgres', "ALTER SERVER erp OPTIONS (ADD sslrootcert '$certificate')");
is(models(), 't', 'one that is known');
$till->safe_psql('postgres', "ALTER SERVER erp OPTIONS (SET sslrootcert '/no/such/file')");
like(models(), qr{could not connect to server "erp".*/no/such/file}s, 'no file');
$till->safe_psql('postgres', "ALTER SERVER erp OPTIONS (SET sslrootcert '$certificate', SET url 'http://127.0.0.1:$port')");
like(models(), qr/could not connect to server "erp"|connection to server "erp" was lost|not Tryton's|HTTP status/, 'not encrypted where it has to be');

# A certificate for another host
$erp->stop;
$erp->{ssl} = [ "${key}other", "${certificate}other" ];
$erp->start;
$till->safe_psql('postgres', "ALTER SERVER erp OPTIONS (SET sslrootcert '${certificate}other', SET url 'https://127.0.0.1:$port')");
like(models(), qr/could not connect to server "erp".*subject/si, 'one for another host');

done_testing();
