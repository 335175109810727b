package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A socket belongs to the network namespace it was made in, whichever process uses it. So the supervisor makes sockets in
// the namespaces of nodes and pods and hands them out, and clients (the CLI, tests) speak from there without entering.

// bindAnyPort gives a fresh socket a port before it connects, so that its packets can be told apart, and returns it.
func bindAnyPort(f *os.File, family netip.Addr) (uint16, error) {
	any := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if family.Is6() {
		any = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	fd, err := rawFD(f)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, sockaddr(any)); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, errors.New("not an IP socket")
}

// connectSocket connects a fresh non-blocking stream socket and takes the file over.
func connectSocket(f *os.File, to netip.AddrPort, deadline time.Time) (*net.TCPConn, error) {
	defer f.Close()
	if err := f.SetDeadline(deadline); err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	begun := false
	var result error
	err = raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), sockaddr(to))
			return !errors.Is(result, unix.EINPROGRESS)
		}
		result = connectResult(int(fd))
		return !errors.Is(result, unix.EINPROGRESS)
	})
	if err == nil {
		err = result
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// connectResult tells how a connect went, or EINPROGRESS while it is under way.
func connectResult(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return unix.Errno(code)
	}
	if _, err := unix.Getpeername(fd); err != nil { // writable before it is connected: the poller saw the fresh socket
		return unix.EINPROGRESS
	}
	return nil
}

// listenSocket makes a listener of a fresh stream socket and takes the file over. Port 0 takes a free one.
func listenSocket(f *os.File, at netip.AddrPort) (*net.TCPListener, error) {
	defer f.Close()
	fd := int(f.Fd()) // blocking from here on; net.FileListener sets its own copy free again
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, problem(fmt.Sprintf("port %d is in use there", at.Port()), "choose another one")
		}
		return nil, fmt.Errorf("bind %s: %w", at, err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// pairSocket binds a fresh datagram socket, connects it, and takes the file over.
func pairSocket(f *os.File, own, peer netip.AddrPort) (*net.UDPConn, error) {
	defer f.Close()
	fd, err := rawFD(f)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sockaddr(own)); err != nil {
		return nil, fmt.Errorf("bind %s: %w", own, err)
	}
	if err := unix.Connect(fd, sockaddr(peer)); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", peer, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// rawSocket connects a fresh raw socket, and takes the file over.
func rawSocket(f *os.File, to netip.Addr) (*net.IPConn, error) {
	defer f.Close()
	fd, err := rawFD(f)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(to, 0))); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.IPConn), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
