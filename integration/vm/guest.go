package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guest is one run of qemu.
type guest struct {
	kernel  kernel
	config  Config
	initrd  *os.File
	console console
}

// The wires between this process and the guest, each a socket pair whose one end qemu inherits. The first is the serial
// line, the others are virtio ports with these numbers; guest/job.sh is at their other end.
const (
	wireConsole = iota
	wireStdin
	wireStdout
	wireStderr
	wireOutcome
	wires
)

// initrdFD is the initrd's number in qemu: the first after the standard files. The wires follow.
const initrdFD = 3

func (g *guest) run(ctx context.Context) (code int, err error) {
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	ours, theirs, err := pairs()
	if err != nil {
		return -1, err
	}
	defer closeAll(ours)
	result := outcome{up: make(chan struct{})}
	var reading sync.WaitGroup
	for wire, to := range map[int]io.Writer{wireConsole: &g.console, wireStdout: g.config.Stdout, wireStderr: g.config.Stderr} {
		reading.Go(func() {
			if _, err := io.Copy(to, ours[wire]); err != nil {
				kill(fmt.Errorf("pass its output on: %w", err))
			}
		})
	}
	reading.Go(func() { result.read(ours[wireOutcome]) })
	if g.config.Stdin != nil {
		// It may wait in a read for as long as the reader likes, so it is not waited for.
		go func() {
			_, _ = io.Copy(ours[wireStdin], g.config.Stdin)
			_ = ours[wireStdin].CloseWrite()
		}()
	}
	booting := time.AfterFunc(bootTimeout, func() {
		if !result.started() {
			kill(fmt.Errorf("it has not booted within %v: %w", bootTimeout, context.DeadlineExceeded))
		}
	})
	defer booting.Stop()
	err = g.qemu(ctx, theirs)
	reading.Wait()
	switch {
	case result.err != nil:
		return -1, result.err
	case result.code >= 0: // even if it had to be killed afterwards
		return result.code, nil
	case ctx.Err() != nil && !result.started():
		return -1, fmt.Errorf("stopped while it booted: %w", context.Cause(ctx))
	case ctx.Err() != nil:
		return -1, context.Cause(ctx)
	case err != nil:
		return -1, fmt.Errorf("qemu: %w", err)
	}
	return -1, errors.New("the guest went off before the command ended")
}

// qemu runs it until it ends, which it does with the guest, with ctx, and with this process. It closes its files here.
func (g *guest) qemu(ctx context.Context, theirs []*os.File) error {
	defer closeAll(theirs)
	file, err := find("qemu-system-x86_64")
	if err != nil {
		return err
	}
	// An emulated processor takes all of a real one, so it gives way to everything else.
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10", file}, g.arguments()...)...)
	cmd.Stdout, cmd.Stderr = &g.console, &g.console
	cmd.ExtraFiles = append([]*os.File{g.initrd}, theirs...)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true, // a terminal's Ctrl-C is for us alone
		Pdeathsig: syscall.SIGKILL,
	}
	// The kernel sends that signal when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	closeAll(theirs) // so that the wires end with qemu
	return cmd.Wait()
}

// arguments are qemu's. KVM is never used: where it is nested it can hang, and what it would change is speed alone.
func (g *guest) arguments() []string {
	c := g.config
	cmdline := append([]string{
		"console=ttyS0", "quiet", mark,
		"panic=-1", "oops=panic", // a broken kernel ends the run at once, with its reason on the console
		"mitigations=off", "audit=0", "cryptomgr.notests", "random.trust_cpu=on", // emulated: slow, and guarding nothing
	}, c.Cmdline...)
	if len(c.Without) > 0 {
		cmdline = append(cmdline, "module_blacklist="+strings.Join(c.Without, ","))
	}
	args := []string{
		// without what is slow to emulate and of no matter here
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off,erms=off,fsrm=off,smap=off,smep=off,pku=off,pcid=off", "-smp", strconv.Itoa(c.CPUs), "-m", strconv.Itoa(c.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", g.kernel.image(), "-initrd", fmt.Sprintf("/proc/self/fd/%d", initrdFD), "-append", strings.Join(cmdline, " "),
		"-fsdev", "local,id=machine,path=/,security_model=none,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine",
		"-device", "virtio-serial-pci",
	}
	for wire := range wires {
		id := fmt.Sprintf("wire%d", wire)
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, initrdFD+1+wire))
		if wire == wireConsole {
			args = append(args, "-serial", "chardev:"+id)
		} else {
			args = append(args, "-device", fmt.Sprintf("virtserialport,chardev=%s,nr=%d", id, wire))
		}
	}
	return args
}

// connection is our end of a wire.
type connection struct{ *os.File }

// CloseWrite lets the other end see the end of what was written.
func (c connection) CloseWrite() error { return unix.Shutdown(int(c.Fd()), unix.SHUT_WR) }

// pairs makes the wires.
func pairs() (ours []connection, theirs []*os.File, err error) {
	for range wires {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			closeAll(ours)
			closeAll(theirs)
			return nil, nil, fmt.Errorf("socket pair: %w", err)
		}
		ours = append(ours, connection{os.NewFile(uintptr(fds[0]), "wire")})
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), "wire"))
	}
	return ours, theirs, nil
}

func closeAll[C io.Closer](list []C) {
	for _, c := range list {
		c.Close()
	}
}
