package lab

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is where something runs: the network namespace of a node, pod or router, and the mount and host name
// namespaces of its machine. It lives as long as its open files and the processes in it.
type space struct {
	name string
	net  *os.File
	mnt  *os.File
	uts  *os.File
}

// newMachine makes fresh network, mount and host name namespaces, and calls setup inside them.
func newMachine(name string, setup func() error) (*space, error) {
	var s *space
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("make the namespaces of %s: %w", name, err)
		}
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set the host name of %s: %w", name, err)
		}
		if err := setup(); err != nil {
			return fmt.Errorf("set up %s: %w", name, err)
		}
		var err error
		s, err = currentSpace(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, s.loopbackUp()
}

// newPodSpace makes a network namespace on a machine, and binds it to path there, as a container runtime does.
func newPodSpace(name string, machine *space, path string) (*space, error) {
	s := &space{name: name, mnt: machine.mnt, uts: machine.uts}
	err := machine.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make the network namespace of %s: %w", name, err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		s.net = f
		return bindFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), path)
	})
	if err != nil {
		s.closeNet()
		return nil, err
	}
	return s, s.loopbackUp()
}

// currentSpace opens the namespaces of the calling thread.
func currentSpace(name string) (*space, error) {
	s := &space{name: name}
	for kind, f := range map[string]**os.File{"net": &s.net, "mnt": &s.mnt, "uts": &s.uts} {
		var err error
		if *f, err = os.Open("/proc/thread-self/ns/" + kind); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// do calls fn on a thread of its own that is in the space. Whatever fn does to the thread's namespaces is gone with it.
// Sockets that fn opens, and programs it starts before returning, stay in the space.
func (s *space) do(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // a thread that shares its root cannot change mount namespace
			return fmt.Errorf("enter %s: %w", s.name, err)
		}
		for _, ns := range []struct {
			f    *os.File
			kind int
		}{{s.mnt, unix.CLONE_NEWNS}, {s.uts, unix.CLONE_NEWUTS}, {s.net, unix.CLONE_NEWNET}} {
			if err := unix.Setns(int(ns.f.Fd()), ns.kind); err != nil {
				return fmt.Errorf("enter %s: %w", s.name, err)
			}
		}
		return fn()
	})
}

// links opens a netlink handle on the space's network. The caller closes it.
func (s *space) links() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.net.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", s.name, err)
	}
	return h, nil
}

func (s *space) loopbackUp() error {
	h, err := s.links()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in %s: %w", s.name, err)
	}
	return h.LinkSetUp(lo)
}

func (s *space) closeNet() {
	if s.net != nil {
		s.net.Close()
	}
}

// onOwnThread calls fn on an operating system thread that nothing else uses, and that ends with fn.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread stands for the process in /proc and outlives its goroutine: keep it occupied, take another.
			done <- onOwnThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn() // still locked: the runtime discards the thread
	}()
	return <-done
}
