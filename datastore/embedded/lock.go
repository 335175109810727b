package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDir makes the directory and takes its lock, which ends with the returned file or the process. The file holds the
// owner's process id, for the error others get.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the embedded datastore: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the embedded datastore: %w", err)
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		owner, _ := os.ReadFile(f.Name())
		f.Close()
		return nil, fmt.Errorf("embedded datastore: directory %s is in use by %s; stop that process, or connect to it instead (DATASTORE_TYPE=etcdv3)", dir, process(owner))
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock of the embedded datastore, %s: %w", f.Name(), err)
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of the embedded datastore, %s: %w", f.Name(), err)
	}
	return f, nil
}

func writePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func process(pid []byte) string {
	if p := strings.TrimSpace(string(pid)); p != "" {
		return "process " + p
	}
	return "another process"
}
