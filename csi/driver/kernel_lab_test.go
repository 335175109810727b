//go:build lab

package driver

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/csi/client"
)

// ownMounts gives the test's thread mounts of its own: it is never unlocked, so that they end with the test.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), "this test mounts and needs root")
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

func TestKilledAtAnyStepOnAKernel(t *testing.T) {
	ownMounts(t)
	killed(t, kernel{})
}

// What the pod has: 8 KiB that it may write, and a directory with a socket that it may use and not replace.
func TestWhatThePodSees(t *testing.T) {
	ownMounts(t)
	w := newWorld(t, kernel{})
	require.NoError(t, w.publish(w.request("a")))
	it := w.volume("a")
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(it.target, &fs))
	require.EqualValues(t, unix.TMPFS_MAGIC, fs.Type)
	require.EqualValues(t, 8<<10, fs.Blocks*uint64(fs.Bsize))
	require.NoError(t, os.WriteFile(filepath.Join(it.target, "small"), []byte("x"), 0o600))
	require.ErrorIs(t, os.WriteFile(filepath.Join(it.target, "big"), make([]byte, 16<<10), 0o600), unix.ENOSPC)

	l, err := net.Listen("unix", filepath.Join(w.home.Directory("a"), client.SocketName)) // as felix does
	require.NoError(t, err)
	defer l.Close()
	seen := filepath.Join(it.target, inside, client.SocketName)
	c, err := net.Dial("unix", seen)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.ErrorIs(t, os.Remove(seen), unix.EROFS)
	require.ErrorIs(t, os.WriteFile(filepath.Join(it.target, inside, "x"), nil, 0o600), unix.EROFS)

	require.NoError(t, w.publish(w.request("a")), "while it is in use")
	require.NoError(t, w.whole(it))
	require.NoError(t, w.unpublish("a"))
	require.NoError(t, w.nothing(it))
}

// A volume that the host itself has a file open in is not half removed: what remains is removed when asked again.
func TestAVolumeInUseOnTheHost(t *testing.T) {
	ownMounts(t)
	w := newWorld(t, kernel{})
	require.NoError(t, w.publish(w.request("a")))
	it := w.volume("a")
	f, err := os.Create(filepath.Join(it.target, "open"))
	require.NoError(t, err)
	require.ErrorContains(t, w.unpublish("a"), "a process on the host has a file open in it")
	require.NoError(t, f.Close())
	require.NoError(t, w.unpublish("a"))
	require.NoError(t, w.nothing(it))
}

// A symbolic link in the place of the pod's directory leads nowhere.
func TestALinkInTheVolumeIsNotFollowed(t *testing.T) {
	ownMounts(t)
	w := newWorld(t, kernel{})
	it := w.volume("a")
	elsewhere := t.TempDir()
	require.NoError(t, kernel{}.tmpfs(elsewhere))
	require.NoError(t, run(w.driver.volumes.making(it)[:4]))
	require.NoError(t, os.Symlink(elsewhere, filepath.Join(it.target, inside)))
	require.ErrorContains(t, w.publish(w.request("a")), "is no directory")
	require.NoError(t, w.nothing(it))
	types, err := kernel{}.at(elsewhere)
	require.NoError(t, err)
	require.Len(t, types, 1, "what the link leads to is mounted still")
	require.NoError(t, kernel{}.unmount(elsewhere))
}
