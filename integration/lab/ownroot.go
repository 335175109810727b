package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOwnRoot gives a machine a root of its own: what this machine has, copied when it is written to, in memory, and on it the
// node's directories, /sys with the devices of its network, and the machine's cgroups. Other file systems of this machine are
// there as they are. It runs in the node's fresh mount and
// network namespaces, and ends with the root changed.
func mountOwnRoot(nodeDir string, dirs []privateDir) error {
	// What is written may not be kept on the file system that is copied from.
	memory, root := filepath.Join(nodeDir, "memory"), filepath.Join(nodeDir, "root")
	if err := errors.Join(os.Mkdir(memory, 0o700), os.Mkdir(root, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs for the root: %w", err)
	}
	if err := copyOnWrite("/", root, memory); err != nil {
		return err
	}
	binds, copies, err := otherMounts(nodeDir, dirs)
	if err != nil {
		return err
	}
	for _, at := range copies {
		if err := copyOnWrite(at, filepath.Join(root, at), filepath.Join(memory, strings.ReplaceAll(at, "/", "-"))); err != nil {
			return err
		}
	}
	for _, at := range binds {
		if err := bindInto(at, filepath.Join(root, at)); err != nil {
			return err
		}
	}
	for _, d := range append(dirs, privateDir{sub: "hosts", target: "/etc/hosts"}) {
		if err := bindInto(filepath.Join(nodeDir, d.sub), filepath.Join(root, d.target)); err != nil {
			return err
		}
	}
	const cgroups = "/sys/fs/cgroup"
	if err := mountSysAt(filepath.Join(root, "sys")); err != nil {
		return err
	}
	if _, err := os.Stat(cgroups); err == nil {
		if err := bindInto(cgroups, filepath.Join(root, cgroups)); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The new root is put over the old one and that then taken away, as pivot_root(2) describes.
	if err := errors.Join(unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), os.Chdir("/")); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return nil
}

// copyOnWrite mounts at a place what a file system of this machine has, with what is written kept in dir.
func copyOnWrite(from, to, dir string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("overlay", to, "overlay", 0, "lowerdir="+from+",upperdir="+upper+",workdir="+work); err != nil {
		return kernelProblem("make a copy of "+from+" for the machine", "CONFIG_OVERLAY_FS", err)
	}
	return nil
}

// otherMounts lists what is mounted on this machine's root, which a copy of the root does not show: what can be bound as it is,
// and what needs a copy of its own, because directories of the node lie in it, or the node's own files. What the lab has put
// there to make mount points, and /sys and /run, of which the node gets its own, are left out.
func otherMounts(nodeDir string, dirs []privateDir) (binds, copies []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	below := func(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	seen := []string{"/sys", "/run"} // and what is below these: a bind brings it with it
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(fields[4])
		if at == "/" || slices.ContainsFunc(seen, func(dir string) bool { return below(at, dir) }) {
			continue
		}
		seen = append(seen, at)
		if _, err := os.Stat(mirrorMark(at)); err == nil {
			continue
		}
		switch {
		case slices.ContainsFunc(dirs, func(d privateDir) bool { return below(at, d.target) }):
		case below(nodeDir, at) || slices.ContainsFunc(dirs, func(d privateDir) bool { return below(d.target, at) }):
			copies = append(copies, at)
		default:
			binds = append(binds, at)
		}
	}
	return binds, copies, nil
}

// bindInto binds a file or directory, with what is mounted in it, to a place that is made if need be.
func bindInto(from, to string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if _, missing := os.Stat(to); missing != nil {
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", to, err)
	}
	return nil
}
