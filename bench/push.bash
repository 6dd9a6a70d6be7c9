# push.bash: the experiments about selling and pushing; sourced by run.

# use_sales VARIANT SALES: sets $base to a till that has sold so much and pushed
# nothing
use_sales()
{
	local since='' products=$push_products setup=fdw_push_setup variant=$1
	local sold

	if [ "$variant" = logical ]; then
		use_master "$products"
		use_base "$variant"
		return
	fi
	[ "$variant" != possync ] || setup=possync_queue
	[ "$variant" != row ] || variant=fdw
	use_master "$products"
	use_base "$variant"
	sold=sold_${variant}_$2
	if [ -z "$(till -d postgres -c \
		"SELECT 1 FROM pg_database WHERE datname = '$sold'")" ]; then
		clone "$base" "$sold"
		till -d "$sold" -f "$bench/$setup.sql" -v sales="$2" -f "$bench/sell.sql" \
			-c 'VACUUM (ANALYZE)'
	fi
	base=$sold
}

# use_run RTT: a clone of $base that reaches the master, which has no sales
use_run()
{
	use_network "$1"
	clone "$base" run
	use_port
	forget_sales
}

forget_sales()
{
	master -d "$hq" -c 'TRUNCATE sale, sale_line, payment'
}

push_row()
{
	till -d "$1" -o /dev/null -c 'SELECT row_push()'
}

push_fdw()
{
	till -d "$1" -f "$bench/fdw_push.sql"
}

possync_push="SELECT status, error FROM possync_push('sale')"

push_possync()
{
	local answer
	answer=$(till -d "$1" -c "$possync_push") || return
	[ "$answer" = 'ok|' ] || { echo "$answer"; return 1; }
}

# check_sales VARIANT: master and till agree on every row that was pushed
check_sales()
{
	master -d "$hq" -f "$bench/sales.sql" >"$work/expected"
	till -d run -f "$bench/sales.sql" >"$work/content"
	if ! cmp -s "$work/expected" "$work/content"; then
		diff "$work/expected" "$work/content" | head -n 20 >&2 || true
		die "after a push with $1 master (<) and till (>) differ"
	fi
}

# push: many sales that were made while the network was down
push()
{
	local ms rep variant size trips before published

	for ms in 0 "$rtt"; do
		for ((rep = 1; rep <= reps; rep++)); do
			for variant in row fdw logical possync; do
				wants "$variant" || continue
				size=$sales
				if [ "$variant" = row ] && [ "$size" -gt $row_sales ]; then
					size=$row_sales
				fi
				use_sales "$variant" "$size"
				if [ "$variant" = logical ]; then
					use_publisher "$ms" "$size"
				else
					use_run "$ms"
				fi
				trips=''
				[ "$ms" = 0 ] || { count_trips; before=$REPLY; }
				measure "push_$variant" run
				[ "$ms" = 0 ] || { count_trips; trips=$((REPLY - before)); }
				check_sales "$variant"
				if [ "$variant" = logical ]; then
					unsubscribe master "$hq"
					trips=''
				fi
				record push "$ms" "$variant" "$rep" "$size" 1 "$trips"
			done
		done
	done
	forget_sales
}

# commit_times MASTER|TILL DATABASE: number and time of commit, in us, of every
# sale
commit_times()
{
	"$1" -d "$2" -F ' ' -c "SELECT number, (extract(epoch FROM
		pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM sale" | sort
}

# sale: one sale at a time, pushed by the runner as soon as it is committed; the
# median of the times between its commit here and its commit at the master
sale()
{
	local pushes=20 i before

	wants possync || return 0
	use_sales possync 1000
	use_run "$rtt"
	till -d run -o /dev/null -c "SELECT possync_schedule('sale', 'push', every => '1 hour')"
	until [ "$(till -d run -c 'SELECT count(*) FROM synchronize_queue')" = 0 ]; do
		sleep 0.1
	done
	checkpoint
	count_trips; before=$REPLY
	start_clock
	for ((i = 1001; i <= 1000 + pushes; i++)); do
		till -d run -c "CALL sell($i, $i)"
		sleep 0.3
	done
	stop_clock
	count_trips
	check_sales possync
	clock_wall=$(join <(commit_times till run) <(commit_times master "$hq") |
		sort -V | tail -n $pushes | awk '{ print $3 - $2 }' | sort -n |
		awk '{ time[NR] = $1 } END { print time[int((NR + 1) / 2)] }')
	clock_clients=0
	record sale "$rtt" possync 1 1 1 \
		"$(awk "BEGIN { print ($REPLY - $before) / $pushes }")"
	till -d run -o /dev/null -c "SELECT possync_unschedule('sale')"
	forget_sales
}

# sell_by_pgbench OPTION...: sets $sold to the number of transactions.  They do
# not wait for the disk, whose moods are larger than what is measured.
sell_by_pgbench()
{
	PGOPTIONS='-c synchronous_commit=off' pgbench -n -f "$bench/one_sale.pgbench" -h "$work/run" -p "$till_port" \
		-U postgres "$@" run >"$work/output" 2>&1 ||
		{ cat "$work/output" >&2; die "pgbench failed"; }
	sold=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' \
		"$work/output")
}

# recover: an hour's queue, by the schedule, from when the master is there again
recover()
{
	wants possync || return 0
	use_sales possync "$sales"
	use_run 0
	as pg_ctl -w -s -m fast -D "$work/master" stop
	till -d run -o /dev/null -c "SELECT possync_schedule('sale', 'push', every => '1 hour')"
	sleep 16
	as pg_ctl -w -s -D "$work/master" -l "$work/log/master" start
	start_clock
	until [ "$(till -d run -c 'SELECT count(*) FROM synchronize_queue')" = 0 ]; do
		sleep 0.1
	done
	stop_clock
	till -d run -o /dev/null -c "SELECT possync_unschedule('sale')"
	check_sales possync
	record recover 0 possync 1 0 1
	forget_sales
}

# capture: what the triggers cost who sells: a transaction of six rows, 1,000
# rows of a big insert, a transaction while 20 sell at a time
capture()
{
	local rep variant sold

	wants possync || return 0
	use_sales possync 1000
	for ((rep = 1; rep <= reps; rep++)); do
		for variant in plain queued; do
			clone "$base" run
			[ $variant = queued ] ||
				till -d run -o /dev/null -c "SELECT possync_unqueue('sale')"
			checkpoint
			start_clock
			sell_by_pgbench -c 1 -t 2000
			stop_clock
			record capture 0 $variant "$rep" 0 "$sold"

			checkpoint
			start_clock
			sell_by_pgbench -c 20 -j 2 -T 5
			stop_clock
			record sellers 0 $variant "$rep" 0 "$sold"

			checkpoint
			start_clock
			till -d run -c 'INSERT INTO sale_line (sale_id, product_id, qty, price)
				SELECT (SELECT min(id) FROM sale), 1 + n % 10000, 1, 10
				FROM generate_series(1, 100000) n'
			stop_clock
			record bulk 0 $variant "$rep" 0 100
		done
	done
}

# watch_rate PID: writes how many sales have got keys at the master, each second
# while PID runs
watch_rate()
{
	while kill -0 "$1" 2>/dev/null; do
		echo "$EPOCHREALTIME $(master -d "$hq" -c 'SELECT last_value FROM sale_id_seq')"
		sleep 1
	done >"$work/rate"
}

# record_rate: the time of a thousand sales in the first and the last quarter
record_rate()
{
	local quarter

	for quarter in first last; do
		clock_wall=$(awk -v quarter=$quarter '
			{ at[NR] = $1; sales[NR] = $2 }
			END {
				all = sales[NR] - sales[1]
				for (i = 1; i <= NR; i++) {
					if (sales[i] - sales[1] <= all / 4) low = i
					if (sales[i] - sales[1] <= all * 3 / 4) high = i
				}
				from = quarter == "first" ? 1 : high
				to = quarter == "first" ? low : NR
				took = (at[to] - at[from]) / (sales[to] - sales[from])
				printf "%d", took * 1e9
			}' "$work/rate")
		clock_master=0 clock_till=0 clock_clients=0
		record backlog 0 "$quarter" 1 0 1
	done
}

# record_selling VARIANT: how long a sale takes those who sell as fast as they can,
# and two who make 25 sales a second each
record_selling()
{
	local latency

	start_clock
	sell_by_pgbench -c 2 -T 5
	stop_clock
	record selling 0 "$1" 1 0 "$sold"

	start_clock
	sell_by_pgbench -c 2 -T 5 -R 50
	stop_clock
	latency=$(sed -n 's/^latency average = \([0-9.]*\) ms.*/\1/p' "$work/output")
	clock_wall=$(awk -v ms="$latency" 'BEGIN { printf "%d", ms * 1e3 }')
	record paced 0 "$1" 1 0 1
}

# backlog: a queue filled for long is emptied while two go on selling.  Worker and
# master take a processor each meanwhile; so do, for comparison, two loops that do
# nothing else.
backlog()
{
	local pid watcher worker='' peak sold busy

	wants possync || return 0
	use_sales possync $((backlog_rows / 6))
	use_run 0
	checkpoint
	record_selling alone
	while :; do :; done &
	busy=$!
	while :; do :; done &
	record_selling busy
	kill $busy $!

	use_run 0
	checkpoint
	start_clock
	push_possync run >"$work/pushed" 2>&1 &
	pid=$!
	watch_rate $pid &
	watcher=$!
	until [ -n "$worker" ]; do
		worker=$(till -d run -c "SELECT pid FROM pg_stat_activity
			WHERE backend_type = 'possync push'")
	done
	echo "$worker" >"$work/worker"
	peak_memory $pid "$work/worker"
	peak=$REPLY
	wait $pid || { cat "$work/pushed" >&2; die "the push failed"; }
	stop_clock
	wait $watcher
	check_sales possync
	record backlog 0 possync 1 0 1 '' "$peak"
	record_rate

	use_run 0
	checkpoint
	push_possync run >"$work/pushed" 2>&1 &
	pid=$!
	record_selling pushing
	kill -0 $pid || die "the push was over too soon"
	wait $pid || { cat "$work/pushed" >&2; die "the push failed"; }
	push_possync run
	check_sales possync
	forget_sales
}
