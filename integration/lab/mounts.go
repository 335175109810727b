package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// privateDir is a directory that a node has for itself, with its place in the node's state directory.
type privateDir struct{ sub, target string }

// privateDirs are those of each node.
var privateDirs = []privateDir{
	{"run", "/run"},
	{"var-lib-calico", "/var/lib/calico"},
	{"var-lib-cni", "/var/lib/cni"},
	{"var-log-calico", "/var/log/calico"},
	{"etc-calico", "/etc/calico"},
	{"etc-cni", "/etc/cni"},
	{"opt-cni", "/opt/cni"},
}

// mountLab prepares the mount namespace that the whole lab lives in. The machine's own files stay as they are, and
// nothing mounted here is seen outside.
func mountLab(stateDir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) { // as AppArmor does on Ubuntu
			return problem("this user may make a user namespace but not mount in it: "+err.Error(),
				"run it as root, or allow it (on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
		}
		return fmt.Errorf("make mounts private: %w", err)
	}
	state, err := os.Open(stateDir)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return problem("the kernel refuses a fresh /proc here: "+err.Error(), "in a container start the lab as root with --privileged")
	}
	// /run of the machine is hidden: a lab must neither see the host's sockets and locks nor leave its own.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	if _, err := os.Stat(stateDir); errors.Is(err, os.ErrNotExist) { // it lies below /run: show it again
		if err := os.MkdirAll(stateDir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", state.Fd()), stateDir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", stateDir, err)
		}
	}
	for _, d := range privateDirs {
		if err := ensureMountPoint(d.target); err != nil {
			return fmt.Errorf("make %s: %w", d.target, err)
		}
	}
	return nil
}

// dirs are all directories that the node has for itself; one that lies in another comes after it.
func (n Node) dirs() []privateDir {
	all := slices.Clone(privateDirs)
	if n.Machine != nil {
		for _, dir := range n.Machine.Dirs {
			all = append(all, privateDir{sub: strings.ReplaceAll(dir[1:], "/", "-"), target: dir})
		}
	}
	return all
}

// mountNode gives a node its own directories, /sys and /etc/hosts, on top of the lab's mounts. It runs in the node's
// fresh mount and network namespaces.
func mountNode(nodeDir string, n Node) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if n.Machine != nil {
		return mountOwnRoot(nodeDir, n.dirs())
	}
	if err := unix.Mount(filepath.Join(nodeDir, "hosts"), "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /etc/hosts: %w", err)
	}
	// The node's directory may lie below /run, so /run, the first in the list, is covered last.
	for _, d := range slices.Backward(privateDirs) {
		if err := unix.Mount(filepath.Join(nodeDir, d.sub), d.target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d.target, err)
		}
	}
	if fi, err := os.Lstat("/var/run"); err == nil && fi.IsDir() {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /var/run: %w", err)
		}
	}
	return mountSys()
}

// mountSys shows the devices of the calling thread's network namespace in /sys.
func mountSys() error { return mountSysAt("/sys") }

func mountSysAt(path string) error {
	if err := unix.Mount("sysfs", path, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return problem("the kernel refuses a fresh /sys here: "+err.Error(), "in a container start the lab as root with --privileged")
	}
	return nil
}

// ensureMountPoint makes sure that the directory exists in this mount namespace, without writing to the machine: the
// nearest existing parent is replaced by a tmpfs that holds all its entries and can take a new one.
func ensureMountPoint(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent == "/" {
		return problem(dir+" is missing on this machine", "make it (mkdir "+dir+"); the lab mounts its own files below it")
	}
	if err := ensureMountPoint(parent); err != nil {
		return err
	}
	if _, err := os.Stat(mirrorMark(parent)); err != nil {
		if err := mirror(parent); err != nil {
			return fmt.Errorf("mirror %s: %w", parent, err)
		}
	}
	return os.Mkdir(dir, 0o755)
}

// mirrorMark is where the original of a mirrored directory is kept reachable.
func mirrorMark(dir string) string {
	return filepath.Join("/run/muslin-mirror", strings.ReplaceAll(dir, "/", "_"))
}

// mirror puts a tmpfs over dir that holds the same entries, each bound to its original.
func mirror(dir string) error {
	original := mirrorMark(dir)
	if err := os.MkdirAll(original, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, original, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	entries, err := os.ReadDir(original)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := mirrorEntry(filepath.Join(original, e.Name()), filepath.Join(dir, e.Name()), e); err != nil {
			return err
		}
	}
	return nil
}

func mirrorEntry(from, to string, e os.DirEntry) error {
	switch {
	case e.Type()&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case e.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
	default:
		return bindFile(from, to)
	}
}

// bindFile makes an empty file at to and binds from to it.
func bindFile(from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind %s to %s: %w", from, to, err), os.Remove(to))
	}
	return nil
}
