package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/csi/client"
)

// inside is the name, in the pod's volume, of the directory that holds the socket.
const inside = "nodeagent"

// volumes makes and removes volumes. Each is made, and removed, in steps of which every one may have been done before: a
// process that was killed between any two of them is followed by one that repeats them all. The record is written last and
// removed first, so that where there is one, the volume is whole.
type volumes struct {
	home   client.Home
	mounts mounts
}

// volume is one volume of a pod.
type volume struct {
	id       string
	target   string // where it is mounted; its parent is there, and has no symbolic link in its path
	pod      client.Pod
	readOnly bool
}

// step makes one thing so; it is no error if it is so already.
type step struct {
	name string
	do   func() error
}

func run(steps []step) error {
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// making are the steps that make a volume.
func (v volumes) making(it volume) []step {
	dir, shown := v.home.Directory(it.id), filepath.Join(it.target, inside)
	steps := []step{
		{"making the directories of the driver", v.home.Prepare},
		{"making the pod's directory", func() error { return mkdir(dir) }},
		{"making the target", func() error { return mkdir(it.target) }},
		{"mounting a tmpfs on the target", func() error { return v.mountTmpfs(it.target) }},
		{"making " + inside + " in the target", func() error { return mkdir(shown) }},
		{"showing the pod's directory in the target", func() error { return v.show(dir, shown) }},
		// Else whoever is root in the pod could put something else in the socket's place.
		{"letting nobody write to the pod's directory by way of the target", func() error { return v.mounts.readOnly(shown) }},
	}
	if it.readOnly {
		steps = append(steps, step{"making the target read-only", func() error { return v.mounts.readOnly(it.target) }})
	}
	return append(steps, step{"recording whose it is", func() error { return v.home.Save(it.id, it.pod) }})
}

// removing are the steps that remove a volume. What of it was never there is no error. A target that is empty has no path.
func (v volumes) removing(id, target string) []step {
	steps := []step{{"forgetting whose it is", func() error { return v.home.Forget(id) }}}
	if target != "" {
		shown := filepath.Join(target, inside)
		steps = append(
			steps,
			step{"unmounting the pod's directory", func() error { return v.unmount(shown, "") }},
			step{"unmounting the target", func() error { return v.unmount(target, tmpfsType) }},
			step{"removing the target", func() error { return rmdir(target) }},
		)
	}
	return append(steps, step{"removing the pod's directory", func() error { return os.RemoveAll(v.home.Directory(id)) }})
}

// mkdir makes a directory that everybody may look into: processes in pods are of any user.
func mkdir(path string) error {
	err := os.Mkdir(path, 0o755)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if found, err := os.Lstat(path); err != nil || !found.IsDir() {
		return errors.Join(fmt.Errorf("%s is there and is no directory", path), err)
	}
	return nil
}

// rmdir removes an empty directory; one that is not there is no error.
func rmdir(path string) error {
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (v volumes) mountTmpfs(target string) error {
	types, err := v.mounts.at(target)
	if err != nil {
		return err
	}
	if len(types) == 0 {
		return v.mounts.tmpfs(target)
	}
	if found := types[len(types)-1]; found != tmpfsType {
		return foreign(target, found)
	}
	return nil
}

// show has the pod's directory be seen in the target. A directory of that name that is gone from the driver's home is not
// that of the pod any more, though it is seen still.
func (v volumes) show(dir, shown string) error {
	types, err := v.mounts.at(shown)
	if err != nil {
		return err
	}
	if len(types) > 0 {
		if same, err := v.mounts.shows(dir, shown); same || err != nil {
			return err
		}
		if err := v.unmount(shown, ""); err != nil {
			return err
		}
	}
	return v.mounts.bind(dir, shown)
}

// unmount takes away everything that is mounted at a path, if it is of the type that is given. Calico's driver mounted once
// more each time it was asked.
func (v volumes) unmount(path, only string) error {
	types, err := v.mounts.at(path)
	if err != nil {
		return err
	}
	for _, found := range types {
		if only != "" && found != only {
			return foreign(path, found)
		}
	}
	for range types {
		if err := v.mounts.unmount(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func foreign(path, found string) error {
	return fmt.Errorf("a file system of type %s is mounted at %s, which this driver did not do; unmount it", found, path)
}
