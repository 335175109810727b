package driver

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mounts is what volumes need of the kernel.
type mounts interface {
	// at tells the types of the file systems that are mounted at exactly this path, lowest first.
	at(path string) ([]string, error)
	// tmpfs mounts a small file system in memory.
	tmpfs(path string) error
	// bind shows a directory at another place too.
	bind(from, to string) error
	// shows tells whether what is at a place is that very directory.
	shows(from, to string) (bool, error)
	// readOnly has nobody write by way of the mount at a path.
	readOnly(path string) error
	// unmount takes away what is mounted last at a path.
	unmount(path string) error
}

const (
	tmpfsType = "tmpfs"
	// tmpfsOptions leave room for the directory that holds the socket, and little else (spec §7.2).
	tmpfsOptions = "size=8k,mode=0755"
	// harmless are flags of everything that is mounted: nothing in it is a program or a device.
	harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// kernel is the mounts of the namespace that the thread is in.
type kernel struct{}

func (kernel) at(path string) ([]string, error) {
	body, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	return mountedAt(string(body), path)
}

func (kernel) tmpfs(path string) error {
	return unix.Mount(tmpfsType, path, tmpfsType, harmless|unix.MS_RELATIME, tmpfsOptions)
}

func (kernel) bind(from, to string) error { return unix.Mount(from, to, "", unix.MS_BIND, "") }

func (kernel) shows(from, to string) (bool, error) {
	a, err := os.Stat(from)
	if err != nil {
		return false, err
	}
	b, err := os.Stat(to)
	return err == nil && os.SameFile(a, b), err
}

func (kernel) readOnly(path string) error {
	return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|harmless, "")
}

// unmount does not follow a symbolic link: a pod may have put one where it could write.
func (kernel) unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: a process on the host has a file open in it", err)
	}
	return err
}

// mountedAt finds a path among the lines of a mountinfo, proc_pid_mountinfo(5).
func mountedAt(mountinfo, path string) (types []string, _ error) {
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		dash := -1 // ends a list of optional fields
		for i := 6; i < len(fields) && dash < 0; i++ {
			if fields[i] == "-" {
				dash = i
			}
		}
		if dash < 0 || dash+1 >= len(fields) {
			return nil, fmt.Errorf("a line of mountinfo that cannot be read: %q", line)
		}
		if unescape(fields[4]) == path {
			types = append(types, fields[dash+1])
		}
	}
	return types, nil
}

// unescape turns \040 and such, which stand for characters that would break the line, into these.
func unescape(s string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		s = after
		if len(s) >= 3 {
			if c, err := strconv.ParseUint(s[:3], 8, 8); err == nil {
				out.WriteByte(byte(c))
				s = s[3:]
				continue
			}
		}
		out.WriteByte('\\')
	}
}
