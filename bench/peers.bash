# peers.bash: restore, logical replication, mimeo; sourced by run.  The tills of
# all three have the master's keys: they match nothing and translate nothing.

# setup_restore DATABASE: tables without indexes and constraints; $work/restore
# makes them
setup_restore()
{
	setup_copy "$1"
	till -d "$1" -f "$bench/restore.sql" >"$work/restore"
}

pull_restore()
{
	pull_copy "$1" && till -d "$1" -f "$work/restore"
}

# subscribe SIDE DATABASE PORT PUBLISHER OPTIONS: SIDE is master or till
subscribe()
{
	"$1" -d "$2" -c "CREATE SUBSCRIPTION bench CONNECTION 'host=127.0.0.1 port=$3
		dbname=$4 user=postgres password=$PGPASSWORD' PUBLICATION bench WITH ($5)"
}

# unsubscribe SIDE DATABASE
unsubscribe()
{
	"$1" -d "$2" -c 'DROP SUBSCRIPTION bench'
}

# until_true CONDITION: a statement that waits, and looks often enough
until_true()
{
	echo "DO 'BEGIN
		WHILE NOT (${1//\'/\'\'}) LOOP PERFORM pg_sleep(0.005); END LOOP;
	END'"
}

# follow SIDE DATABASE: what was committed at the other side until $published
# arrives.  What the publisher has nothing before it sends nothing of, but it
# tells how far it is.
follow()
{
	"$1" -d "$2" -c 'ALTER SUBSCRIPTION bench ENABLE' -c "$(until_true "
		(SELECT coalesce(latest_end_lsn >= '$published', false)
		 FROM pg_stat_subscription WHERE subname = 'bench' AND relid IS NULL)")"
}

setup_logical()
{
	setup_copy "$1"
	publish
}

publish()
{
	[ -n "$(master -d "$hq" -c 'SELECT 1 FROM pg_publication')" ] ||
		master -d "$hq" -c "CREATE PUBLICATION bench FOR TABLE $(IFS=,; echo "${tables[*]}")"
}

# all rows, and then the state in which changes are followed
pull_logical()
{
	subscribe till "$1" "$hq_port" "$hq" 'copy_data = true' &&
		till -d "$1" -c "$(until_true "(SELECT bool_and(srsubstate = 'r')
			FROM pg_subscription_rel
			JOIN pg_subscription s ON s.oid = srsubid AND subname = 'bench')")"
}

# follow_changes DATABASE: a till that has been away
follow_changes()
{
	follow till "$1"
}

# use_publisher RTT: a clone of $base whose sales the master will follow; they
# are made here, for only what follows the subscription is sent
use_publisher()
{
	local port=$till_port

	[ "$1" = 0 ] || port=$till_delay_port
	clone "$base" run
	forget_sales
	till -d run -c 'CREATE PUBLICATION bench FOR TABLE sale, sale_line, payment'
	subscribe master "$hq" "$port" run 'enabled = false, copy_data = false'
	till -d run -v sales="$2" -f "$bench/sell.sql" -c 'VACUUM (ANALYZE)'
	published=$(till -d run -c 'SELECT pg_current_wal_insert_lsn()')
}

push_logical()
{
	follow master "$hq"
}

# setup_mimeo DATABASE: a till that has the rows.  It has no foreign keys, since
# mimeo deletes a row that has changed and inserts it again; no margin for
# transactions that are still running, which would keep it ten minutes behind.
setup_mimeo()
{
	local table since=''

	setup_copy "$1"
	pull_copy "$1"
	till -d "$1" <<-END
		SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
		FROM pg_constraint WHERE contype = 'f' \gexec
		CREATE SCHEMA mimeo;
		CREATE EXTENSION dblink SCHEMA mimeo;
		CREATE EXTENSION mimeo SCHEMA mimeo;
		INSERT INTO mimeo.dblink_mapping_mimeo (data_source, username, pwd)
		VALUES ('host=127.0.0.1 port=$hq_port dbname=$hq', 'postgres', '$PGPASSWORD');
		\o /dev/null
		$(printf "SELECT mimeo.updater_maker('public.%s', 'time', 'updated_at', 1,
			p_boundary := '0 seconds', p_pulldata := false);\n" "${tables[@]}")
		UPDATE mimeo.refresh_config_updater_time SET dst_active = false;
	END
}

mimeo_pull=$(printf "SELECT mimeo.refresh_updater('public.%s');\n" "${tables[@]}")

pull_mimeo()
{
	till -d "$1" -o /dev/null -f - <<<"$mimeo_pull"
}
