package gobgp

import (
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// When gobgp removes a session, the session's goroutine writes a last NOTIFICATION. To a peer that reads nothing any more, and
// has been sent more than buffers hold, it writes for a quarter of an hour; and if anything that the peer had sent is still
// to be judged, gobgp's only loop waits for that goroutine. So the connection is broken if the write takes longer than this.
const lastWords = 200 * time.Millisecond

// A connection that comes in, or that we have made, in the moment in which gobgp removes a session or makes it anew, may wait in
// a queue that nobody reads any more. The other end would wait for our OPEN for four minutes. What has been silent for this
// long counts as forgotten: gobgp speaks first, and at once.
const silence = time.Second

// hangUp breaks the connections that there are with a peer now, in a moment. It holds the sockets until then, so that no other
// that is given the same number is hit.
func hangUp(peer, local netip.Addr) {
	sockets := connections(peer, local)
	if len(sockets) == 0 {
		return
	}
	time.AfterFunc(lastWords, func() {
		for _, fd := range sockets {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
			_ = unix.Close(fd)
		}
	})
}

// closeForgotten breaks the connections with a peer that have just been forgotten.
func closeForgotten(peer, local netip.Addr) {
	time.AfterFunc(lastWords, func() {
		before := map[uint64]struct{}{}
		silent(peer, local, func(_ int, inode uint64) { before[inode] = struct{}{} })
		if len(before) == 0 {
			return
		}
		time.AfterFunc(silence, func() {
			silent(peer, local, func(fd int, inode uint64) {
				if _, still := before[inode]; still {
					_ = unix.Shutdown(fd, unix.SHUT_RDWR)
				}
			})
		})
	})
}

// silent yields the connections with a peer on which nothing was sent. A socket's inode is its own as long as it is there.
func silent(peer, local netip.Addr, yield func(fd int, inode uint64)) {
	for _, fd := range connections(peer, local) {
		var file unix.Stat_t
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Data_segs_out == 0 && unix.Fstat(fd, &file) == nil {
			yield(fd, file.Ino)
		}
		_ = unix.Close(fd)
	}
}

// connections are copies of this process's TCP sockets that are connected to a peer, from one of our addresses if it is valid.
// gobgp does not give its connections away.
func connections(peer, local netip.Addr) []int {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var out []int
	for _, entry := range dir {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || !connected(fd, peer, local) {
			continue
		}
		held, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if !connected(held, peer, local) { // closed and opened as something else meanwhile
			_ = unix.Close(held)
			continue
		}
		out = append(out, held)
	}
	return out
}

func connected(fd int, peer, local netip.Addr) bool {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return false
	}
	to, err := unix.Getpeername(fd)
	if err != nil || addressOf(to) != peer {
		return false
	}
	from, err := unix.Getsockname(fd)
	return err == nil && (!local.IsValid() || addressOf(from) == local)
}

func addressOf(s unix.Sockaddr) netip.Addr {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(s.Addr).Unmap()
	}
	return netip.Addr{}
}
