# Process 1 of the guest, second half: a system good enough for the job, the job, its end.
# Ports to the machine: 1 standard input, 2 standard output, 3 standard error, 4 what became of the job, by lines
# "up", "exit CODE" or "error TEXT".
set -eu
here=/run/muslin-vm
box=$here/busybox
. $here/job

$box mount -t proc proc /proc
$box mount -t sysfs sys /sys
$box mkdir -p /dev/pts /dev/shm /run/netns /run/lock
$box mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$box mount -t tmpfs shm /dev/shm
$box mount -t cgroup2 cgroup2 /sys/fs/cgroup
$box mount -t bpf bpf /sys/fs/bpf
$box ln -s /proc/self/fd /dev/fd
$box ln -s /proc/self/fd/0 /dev/stdin
$box ln -s /proc/self/fd/1 /dev/stdout
$box ln -s /proc/self/fd/2 /dev/stderr

# The kernel makes the ports' files when it has heard of them from the machine's side.
ports() { set -- /dev/vport*p[1-4] && [ $# = 4 ] && port=${1%1}; }
until ports; do $box usleep 10000; done
exec 4>${port}4
off() {
	$box sync
	echo 0 >/proc/sys/kernel/printk # a kernel that goes off as it was told to need not say so
	$box poweroff -f
}
error() {
	echo "error $*" >&4
	off
}

# Modules load by themselves and by modprobe, as on any machine.
[ -d /lib/modules ] || $box mkdir -p /lib/modules
$box mount --bind "$kernel/lib/modules" /lib/modules
for module in $modules; do
	said=$(/sbin/modprobe "$module" 2>&1) || error "module $module cannot be loaded: $said"
done

$box hostname "$hostname"
$box ip link set lo up
ulimit -n 1048576
cd "$dir" || error "there is no directory $dir in the guest (/run and what lies below it is the guest's own)"

# Pipes rather than the ports themselves: a port can be opened once only, so /dev/stdout would not work.
$box mkfifo $here/out $here/err
$box cat $here/out >${port}2 &
out=$!
$box cat $here/err >${port}3 &
err=$!
if $stdin; then input=${port}1; else input=/dev/null; fi
echo up >&4
code=0
{ (job) <$input >$here/out 2>$here/err 4>&- || code=$?; } 2>/dev/null

# What the job left running ends with it. Then the pipes have an end, and what is in them is read to it.
for process in /proc/[0-9]*; do
	case ${process#/proc/} in
	1 | "$out" | "$err") ;;
	*) kill -9 "${process#/proc/}" 2>/dev/null || : ;;
	esac
done
wait "$out" "$err" || :
echo "exit $code" >&4
off
