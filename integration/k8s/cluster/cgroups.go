package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/integration/lab"
)

// Cgroups of a cluster lie in /muslin-k8s/NAME-PID of each hierarchy, PID being its first process: one for each machine, in which
// the kubelet makes those of its pods, and one with that process. The kernel does not remove them with the processes in them;
// but that one, as long as it is not empty, tells that the cluster lives, to whoever shares the kernel with it.
const (
	cgroupMount = "/sys/fs/cgroup"
	cgroupBase  = "muslin-k8s"
	cgroupFirst = "first"
)

// cgroupID is the name of the cgroup of a cluster.
func cgroupID(cluster string, first int) string { return fmt.Sprintf("%s-%d", cluster, first) }

func cgroupOf(id, machine string) string { return "/" + filepath.Join(cgroupBase, id, machine) }

// hierarchies are the places where cgroups are mounted: one for all controllers (version 2), or one for each (version 1) and
// perhaps one of version 2 beside them.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.procs")); err == nil {
		return []string{cgroupMount}, nil
	}
	procs, err := filepath.Glob(filepath.Join(cgroupMount, "*", "cgroup.procs"))
	if err == nil && len(procs) == 0 {
		err = &lab.Problem{What: "no cgroups are mounted in " + cgroupMount, Do: "mount them, as the init system of each distribution does"}
	}
	for i := range procs {
		procs[i] = filepath.Dir(procs[i])
	}
	return procs, err
}

// makeCgroups makes those of a cluster's machines, each with the processors and the memory of what it is in.
func makeCgroups(id string, first int, machines []string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		for _, m := range append([]string{cgroupFirst}, machines...) {
			dir := h
			for _, part := range []string{cgroupBase, id, m} {
				if dir, err = makeCgroup(dir, part); err != nil {
					return fmt.Errorf("make a cgroup for %s: %w", m, err)
				}
			}
			if m != cgroupFirst {
				err = handDown(dir)
			} else {
				err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, first), 0)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func makeCgroup(parent, name string) (dir string, err error) {
	if err := handDown(parent); err != nil {
		return "", err
	}
	dir = filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, inheritSets(parent, dir)
}

// handDown lets the cgroups in one have all of its controllers, in version 2.
func handDown(dir string) error {
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	given, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	for c := range bytes.FieldsSeq(has) {
		if slices.ContainsFunc(bytes.Fields(given), func(g []byte) bool { return bytes.Equal(g, c) }) {
			continue
		}
		if err := os.WriteFile(control, append([]byte("+"), c...), 0); err != nil {
			return fmt.Errorf("hand the controller %s of %s down: %w", c, dir, err)
		}
	}
	return nil
}

// inheritSets copies the sets without which nothing can run in a cgroup of the controller cpuset, version 1.
func inheritSets(parent, dir string) error {
	for _, set := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, set))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, set), value, 0)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("give %s its %s: %w", dir, set, err)
		}
	}
	return nil
}

// reap removes the cgroups of all clusters that have ended, also of those whose makers were killed. With its first process the kernel
// kills all others of a cluster, which have still to leave their cgroups then: they are waited for.
func reap(ctx context.Context) error {
	for {
		err := reapOnce()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func reapOnce() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		base := filepath.Join(h, cgroupBase)
		clusters, err := os.ReadDir(base)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, c := range clusters {
			dir := filepath.Join(base, c.Name())
			if !c.IsDir() || lives(dir) {
				continue
			}
			if err := removeCgroup(dir); err != nil {
				return fmt.Errorf("remove the cgroups of a cluster that has ended: %w", err)
			}
		}
		_ = os.Remove(base) // fails while other clusters are there, as it should
	}
	return nil
}

// lives tells whether the first process of the cluster with that cgroup is there. One that is being made has no cgroup for it
// yet, for a moment; one that is half removed never will.
func lives(dir string) bool {
	procs, err := os.ReadFile(filepath.Join(dir, cgroupFirst, "cgroup.procs"))
	return err == nil && len(procs) > 0
}

// removeCgroup removes a cgroup and all in it: directories can be removed, their files cannot.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) { // another may reap as well
		return err
	}
	return nil
}
