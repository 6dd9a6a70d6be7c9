# wire.bash: bytes on the wire, as they are and as ssh -C would send them; sourced
# by run.

# wire_start: from here on the way to the master is one that is recorded
wire_start()
{
	rm -f "$work/log/wire"
	"$work/delay" 0 "$master_port" 0 "$work/wire" >"$work/log/wire" &
	wire_pid=$!
	until [ -s "$work/log/wire" ]; do sleep 0.01; done
	hq_port=$(sed -n '1s/.* //p' "$work/log/wire")
}

# squeezed FILE: sets REPLY to the length of a recorded stream, what ssh -C makes of
# it, and the seconds of CPU that takes: zlib, level 6, with a flush after each read
# or 16 kB, which is what ssh puts into one packet
squeezed()
{
	REPLY=$(perl -MCompress::Raw::Zlib -e '
		my ($z) = Compress::Raw::Zlib::Deflate->new(-Level => 6, -AppendOutput => 0);
		my ($plain, $small, $length, $bytes, $out) = (0, 0);
		binmode STDIN;
		while (read(STDIN, $length, 4)) {
			read(STDIN, $bytes, unpack("L", $length));
			$plain += length $bytes;
			for (my $at = 0; $at < length $bytes; $at += 16384) {
				my $packet = substr($bytes, $at, 16384);
				$z->deflate($packet, $out); $small += length $out;
				$z->flush($out, Z_PARTIAL_FLUSH); $small += length $out;
			}
		}
		printf "%d\t%d\t%.3f", $plain, $small, (times)[0];' <"$1")
}

# wire_stop WHAT VARIANT N: a line of results for N rows, polls or sales
wire_stop()
{
	local up

	kill "$wire_pid"
	wait "$wire_pid" || true
	squeezed "$work/wire.up"; up=$REPLY
	squeezed "$work/wire.down"
	printf '%s\t' "$1" "$2" "$3" "$up" >>"$work/wires"
	echo "$REPLY" >>"$work/wires"
	say "wire: $1, $2"
	rm "$work/wire.up" "$work/wire.down"
}

# wire_command WHAT VARIANT N COMMAND...: what one command sends and gets
wire_command()
{
	"${@:4}" >"$work/output" 2>&1 || { cat "$work/output" >&2; die "$4 failed"; }
	wire_stop "$1" "$2" "$3"
}

# copy_sales DATABASE: sales of a till with the master's keys
copy_sales()
{
	local table
	for table in sale sale_line payment; do
		till -d "$1" -c "COPY $table TO STDOUT (FORMAT binary)" |
			network -d "$hq" -c "COPY $table FROM STDIN (FORMAT binary)" || return
	done
}

# wire: a first pull, pulls that find nothing, many sales, and sales one by one
wire()
{
	local variant since='' rows=$((4 * products + 238)) i polls=200 singles=50

	for variant in copy fdw possync; do
		wants $variant || continue
		use_master "$products"
		wire_start
		clone till run
		setup_$variant run
		wire_command 'pulled row' $variant $rows pull_$variant run
		check_content $variant run
	done

	since=$(master -d "$hq" -c 'SELECT max(updated_at) FROM template')
	for variant in fdw possync; do
		wants $variant || continue
		use_base $variant
		clone "$base" run
		wire_start
		use_port
		for ((i = 0; i < polls; i++)); do
			nothing_command $variant
		done >"$work/polls"
		wire_command 'poll' $variant $polls till -d run -f "$work/polls"
	done

	for variant in copy fdw possync; do
		wants $variant || continue
		if [ $variant = copy ]; then
			use_sales logical "$sales"
			clone "$base" run
			till -d run -v sales="$sales" -f "$bench/sell.sql"
			forget_sales
			wire_start
			wire_command 'pushed row' copy $((sales * 6)) copy_sales run
		else
			use_sales $variant "$sales"
			clone "$base" run
			forget_sales
			wire_start
			use_port
			wire_command 'pushed row' $variant $((sales * 6)) push_$variant run
		fi
		check_sales $variant
	done

	wants possync || return 0
	use_sales possync 1000
	clone "$base" run
	forget_sales
	use_network 0
	use_port
	push_possync run
	wire_start
	use_port
	till -d run -o /dev/null -c "SELECT possync_schedule('sale', 'push', every => '1 hour')"
	for ((i = 1001; i <= 1000 + singles; i++)); do
		till -d run -c "CALL sell($i, $i)"
		until [ "$(till -d run -c 'SELECT count(*) FROM synchronize_queue')" = 0 ]; do
			sleep 0.05
		done
	done
	till -d run -o /dev/null -c "SELECT possync_unschedule('sale')"
	check_sales possync
	wire_stop 'sale of 6 rows, alone' possync $singles
	forget_sales
}
