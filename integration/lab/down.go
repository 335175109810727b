package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// endTimeout is how long the kernel may take to end a lab's processes, in milliseconds.
const endTimeout = 60_000

// Down removes a lab, whatever state it is in, and returns when nothing of it is left: processes (and with the last one
// the kernel removes the lab's namespaces, links and mounts), mounts below its directory, and the directory. It goes by
// what is on disk and by what bears the lab's name among the machine's processes and mounts. Removing a lab that is not
// there is an error that says so.
func Down(_ context.Context, name, stateDir string) error {
	o := Options{Name: name, StateDir: stateDir}
	if err := o.setDefaults(); err != nil {
		return err
	}
	found := false
	if _, err := os.Stat(o.StateDir); err == nil {
		found = true
	}
	strangers := foreignProcesses(o.StateDir)
	if init, ok := findInit(o.StateDir); ok {
		found = true
		err := init.end()
		init.close()
		if err != nil {
			return fmt.Errorf("end lab %s: %w", o.Name, err)
		}
	}
	// The kernel has ended the rest with it. What this finds was left by a lab whose first process was lost otherwise.
	more, err := endMarked(o.StateDir)
	if err != nil {
		return err
	}
	if err := unmountBelow(o.StateDir); err != nil {
		return err
	}
	if !found && !more {
		return problem(fmt.Sprintf("there is no lab %s (nothing in %s)", o.Name, o.StateDir), "lab list shows the labs that are up")
	}
	if err := removeStateDir(o.StateDir); err != nil {
		return err
	}
	if len(strangers) > 0 {
		return problem(fmt.Sprintf("lab %s is gone, but programs from outside still hold its namespaces: %s", o.Name, strings.Join(strangers, ", ")), "end them")
	}
	return nil
}

func (h *processHandle) end() error {
	if err := h.kill(); err != nil {
		return err
	}
	return h.wait(endTimeout)
}

// findInit returns the lab's first process, by the record on disk or else by its arguments.
func findInit(stateDir string) (*processHandle, bool) {
	var r record
	if data, err := os.ReadFile(filepath.Join(stateDir, recordFile)); err == nil && json.Unmarshal(data, &r) == nil && r.Boot == bootID() {
		h, ok := openProcess(r.PID, func() bool {
			start, err := startTime(r.PID)
			return err == nil && start == r.Start
		})
		if ok {
			return h, true
		}
	}
	pids, err := processIDs()
	if err != nil {
		return nil, false
	}
	for _, pid := range pids {
		if h, ok := openProcess(pid, func() bool { return isInit(pid, stateDir) }); ok {
			return h, true
		}
	}
	return nil, false
}

// endMarked ends all processes that bear the lab's mark, and tells whether there were any.
func endMarked(stateDir string) (bool, error) {
	pids, err := processIDs()
	if err != nil {
		return false, err
	}
	any := false
	for _, pid := range pids {
		h, ok := openProcess(pid, func() bool { return belongsTo(pid, stateDir) })
		if !ok {
			continue
		}
		any = true
		err := h.end()
		h.close()
		if err != nil {
			return true, fmt.Errorf("end process %d of the lab: %w", pid, err)
		}
	}
	return any, nil
}

// unmountBelow removes mounts at and below the state directory in this mount namespace.
func unmountBelow(stateDir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var at []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Fields(sc.Text()); len(fields) > 4 {
			if p := fields[4]; p == stateDir || strings.HasPrefix(p, stateDir+"/") {
				at = append(at, p)
			}
		}
	}
	for _, dir := range slices.Backward(at) { // the last one mounted first
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return nil
}

// removeStateDir removes the directory, and the one above it if it was the last lab's.
func removeStateDir(stateDir string) error {
	if err := os.RemoveAll(stateDir); err != nil {
		return fmt.Errorf("remove %s: %w", stateDir, err)
	}
	if parent := filepath.Dir(stateDir); parent == filepath.Dir(DefaultStateDir("x")) {
		_ = os.Remove(parent) // fails while other labs are there, as it should
	}
	return nil
}

// foreignProcesses finds programs that were started outside the lab but sit in its network namespaces, and so keep them
// alive beyond the lab.
func foreignProcesses(stateDir string) []string {
	spaces := map[string]string{}
	data, err := os.ReadFile(filepath.Join(stateDir, "namespaces.json"))
	if err != nil || json.Unmarshal(data, &spaces) != nil {
		return nil
	}
	pids, err := processIDs()
	if err != nil {
		return nil
	}
	var found []string
	for _, pid := range pids {
		ns := namespaceOf(pid, "net")
		if where, ok := spaces[ns]; ok && namespaceOf(pid, "pid") == namespaceOf(os.Getpid(), "pid") && !isInit(pid, stateDir) {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			found = append(found, fmt.Sprintf("process %d (%s) on %s", pid, strings.TrimSpace(string(comm)), where))
		}
	}
	return found
}

// List names the labs whose directories are in the default place.
func List() ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(DefaultStateDir("x")))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}
