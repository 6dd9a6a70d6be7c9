# clusters.bash: a master and a till, for a while; sourced by run and curves, after
# scripts/environment.  The master is reached over TCP, as it would be; the till's
# clients are on its own machine, but for a master that follows it.

say()
{
	echo "$*" >&2
}

die()
{
	say "bench: $*"
	exit 1
}

# free_port: a TCP port nobody listens on
free_port()
{
	perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(
		Listen => 1, LocalAddr => "127.0.0.1")->sockport'
}

# start_cluster NAME PORT
start_cluster()
{
	local data=$work/$1

	as initdb -D "$data" -U postgres -E UTF8 --locale=C --auth-local=trust \
		--auth-host=scram-sha-256 --pwfile="$work/password" >"$work/log/$1.initdb"
	as tee -a "$data/postgresql.conf" >/dev/null <<-END
		port = $2
		listen_addresses = '127.0.0.1'
		unix_socket_directories = '$work/run'
		fsync = on
		synchronous_commit = on
		full_page_writes = on
		wal_level = logical
		max_replication_slots = 20
		shared_buffers = 512MB
		huge_pages = off
		work_mem = 16MB
		maintenance_work_mem = 64MB
		max_wal_size = 16GB
		checkpoint_timeout = 1h
		autovacuum = off
		jit = off
		track_commit_timestamp = on
		max_worker_processes = 16
	END
	[ "$1" != till ] ||
		as tee -a "$data/postgresql.conf" <<<"shared_preload_libraries = 'possync'" >/dev/null
	as pg_ctl -w -s -D "$data" -l "$work/log/$1" start
}

# psql on the master, on the till, and on the master over the network
master()
{
	psql -XqAt -v ON_ERROR_STOP=1 -h "$work/run" -p "$master_port" -U postgres "$@"
}

till()
{
	psql -XqAt -v ON_ERROR_STOP=1 -h "$work/run" -p "$till_port" -U postgres "$@"
}

network()
{
	psql -XqAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$hq_port" -U postgres "$@"
}

# clone TEMPLATE DATABASE: a copy on the till, with nothing dirty left behind
clone()
{
	till -d postgres -c "DROP DATABASE IF EXISTS $2 WITH (FORCE)" \
		-c "CREATE DATABASE $2 TEMPLATE $1 STRATEGY file_copy"
}

checkpoint()
{
	till -d postgres -c CHECKPOINT
	master -d postgres -c CHECKPOINT
}

# start_clusters: both, empty
start_clusters()
{
	head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1 >"$work/password"
	chmod 644 "$work/password"	# the directory is its user's alone
	PGPASSWORD=$(<"$work/password")
	export PGPASSWORD PGOPTIONS='-c client_min_messages=warning'

	master_port=$(free_port)
	start_cluster master "$master_port"
	till_port=$(free_port)
	start_cluster till "$till_port"
}

# peak_memory PID OUTPUT: sets REPLY to the most private memory (kB) that the
# backend whose pid is the first line of OUTPUT had while PID ran
peak_memory()
{
	local backend='' name value peak=0

	while kill -0 "$1" 2>/dev/null; do
		sleep 0.02
		[ -n "$backend" ] || read -r backend <"$2" || continue
		while read -r name value _; do
			if [ "$name" = RssAnon: ] && [ "$value" -gt "$peak" ]; then
				peak=$value
			fi
		done 2>/dev/null <"/proc/$backend/status" || break
	done
	REPLY=$peak
}
