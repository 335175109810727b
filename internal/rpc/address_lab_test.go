//go:build lab

package rpc

import (
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestAConnectionEndsWithItsAddress: whoever reads learns at once that the address is gone, not after keepalive's time; the
// loss of another address does nothing.
func TestAConnectionEndsWithItsAddress(t *testing.T) {
	runtime.LockOSThread() // and never unlock: the thread, and with it the namespace, ends with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "this test makes a network namespace and needs root")
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	address := func(ip string) *netlink.Addr {
		return &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip).To4(), Mask: net.CIDRMask(32, 32)}}
	}
	for _, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		require.NoError(t, netlink.AddrAdd(lo, address(ip)))
	}
	listener, err := net.Listen("tcp", "192.0.2.1:0")
	require.NoError(t, err)
	defer listener.Close()
	c, err := dialFollowing(t.Context(), listener.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	server, err := listener.Accept()
	require.NoError(t, err)
	defer server.Close()

	require.NoError(t, netlink.AddrDel(lo, address("192.0.2.2")))
	buffer := make([]byte, 1)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err = c.Read(buffer)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "the connection lives")

	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	require.NoError(t, netlink.AddrDel(lo, address("192.0.2.1")))
	_, err = c.Read(buffer)
	require.ErrorIs(t, err, net.ErrClosed, "the connection is gone with its address")
}
