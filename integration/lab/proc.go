package lab

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processIDs lists the processes that this process can see.
func processIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// startTime is when a process was started, in clock ticks since boot. Together with the boot id it tells a process from a
// later one with the same number.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTime(data)
}

func parseStartTime(stat []byte) (uint64, error) {
	n, err := statFields(string(stat), 22)
	return n[0], err
}

// cpuTime is what a process has used of a processor since it was started; 0 if it has ended.
func cpuTime(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	n, _ := statFields(string(data), 14, 15)
	return time.Duration(n[0]+n[1]) * time.Second / userHZ
}

// userHZ is how many ticks of /proc a second has, wherever Linux runs.
const userHZ = 100

// statFields reads numbers of a stat file by their places, the first of which is 1. The second field, the program's name, may
// itself hold spaces and brackets.
func statFields(stat string, places ...int) ([]uint64, error) {
	_, rest, ok := cutLast(stat, ")")
	fields := strings.Fields(rest) // from the third on
	out := make([]uint64, len(places))
	for i, place := range places {
		if !ok || len(fields) < place-2 {
			return out, fmt.Errorf("unexpected process state %q", stat)
		}
		var err error
		if out[i], err = strconv.ParseUint(fields[place-3], 10, 64); err != nil {
			return out, fmt.Errorf("unexpected process state %q: %w", stat, err)
		}
	}
	return out, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// belongsTo tells whether a process is part of the lab with that state directory: it is the lab's init, or it is marked
// in its environment and lives in another process namespace than we do.
func belongsTo(pid int, stateDir string) bool {
	if pid == os.Getpid() {
		return false
	}
	if isInit(pid, stateDir) {
		return true
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	mark := []byte(envState + "=" + stateDir)
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(v, mark) {
			return namespaceOf(pid, "pid") != namespaceOf(os.Getpid(), "pid")
		}
	}
	return false
}

// isInit tells by its arguments whether a process is the first one of the lab with that state directory.
func isInit(pid int, stateDir string) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	return len(args) == 3 && args[1] == argInit && args[2] == stateDir
}

// namespaceOf names a process's namespace of a kind, as in "net:[4026531840]"; empty if it cannot be seen.
func namespaceOf(pid int, kind string) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return ""
	}
	return link
}

// processHandle holds on to one process: its number cannot come to mean another one.
type processHandle struct{ fd int }

// openProcess returns a handle of the process if it runs, and check still holds once the handle is open.
func openProcess(pid int, check func() bool) (*processHandle, bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false
	}
	h := &processHandle{fd: fd}
	if !check() || h.wait(0) == nil { // one that ended and was not yet waited for by its parent does not count
		h.close()
		return nil, false
	}
	return h, true
}

func (h *processHandle) kill() error {
	err := unix.PidfdSendSignal(h.fd, unix.SIGKILL, nil, 0)
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// wait returns when the process has ended, or after timeout milliseconds with an error.
func (h *processHandle) wait(timeout int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}, timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it did not end in %d ms", timeout)
		default:
			return nil
		}
	}
}

func (h *processHandle) close() { _ = unix.Close(h.fd) }
