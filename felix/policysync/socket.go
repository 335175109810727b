package policysync

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/csi/client"
)

// socket is a listening socket in a pod's directory. Whoever is root in the pod may be able to change what the directory
// holds, so that its content is never followed: the directory is held open, and all is done by way of that.
type socket struct {
	listener net.Listener
	dir      int    // the pod's directory
	inode    uint64 // of the socket's name
	device   uint64
}

// openSocket opens the socket of a pod's directory, for every user: processes of the pod are of any. What is there of that
// name is removed.
func openSocket(directory string) (_ *socket, err error) {
	dir, err := unix.Open(directory, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", directory, err)
	}
	s := &socket{dir: dir}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", filepath.Join(directory, client.SocketName), errors.Join(err, s.Close()))
		}
	}()
	if err := unix.Unlinkat(dir, client.SocketName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("what is there cannot be removed: %w", err)
	}
	// By this path the name may be longer than a socket's address, too.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(descriptor(dir), client.SocketName)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be another's by then
	s.listener = l
	name, err := unix.Openat(dir, client.SocketName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(name) }()
	var found unix.Stat_t
	if err := unix.Fstat(name, &found); err != nil {
		return nil, err
	}
	if found.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("something else was put in its place")
	}
	s.inode, s.device = found.Ino, uint64(found.Dev) //nolint:unconvert // its type differs between architectures
	return s, os.Chmod(descriptor(name), 0o666)
}

func descriptor(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// holds tells whether the socket is still what is found by its path.
func (s *socket) holds(directory string) bool {
	var found unix.Stat_t
	err := unix.Lstat(filepath.Join(directory, client.SocketName), &found)
	return err == nil && found.Ino == s.inode && uint64(found.Dev) == s.device //nolint:unconvert // as above
}

// Close ends the socket, and removes its name if it has it still.
func (s *socket) Close() error {
	var errs []error
	if s.listener != nil {
		if err := s.listener.Close(); !errors.Is(err, net.ErrClosed) { // the server has closed it
			errs = append(errs, err)
		}
	}
	var found unix.Stat_t
	if s.inode != 0 && unix.Fstatat(s.dir, client.SocketName, &found, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		found.Ino == s.inode && uint64(found.Dev) == s.device { //nolint:unconvert // as above
		if err := unix.Unlinkat(s.dir, client.SocketName, 0); !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, unix.Close(s.dir))...)
}
