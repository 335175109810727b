package rpc

import (
	"context"
	"net"
	"sync"

	"github.com/vishvananda/netlink"
)

// dialFollowing connects like net.Dialer, but the connection breaks as soon as this host loses the address that it comes
// from. TCP would go on sending from that address, unheard, until keepalive gives up.
func dialFollowing(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok || local.IP.IsLoopback() {
		return c, nil
	}
	changes, done := make(chan netlink.AddrUpdate, 16), make(chan struct{})
	if err := netlink.AddrSubscribe(changes, done); err != nil {
		return c, nil //nolint:nilerr // without news of addresses, keepalive has to do
	}
	go func() {
		for change := range changes { // closed after done, or when the kernel's news were lost
			if !change.NewAddr && change.LinkAddress.IP.Equal(local.IP) {
				c.Close()
			}
		}
		c.Close()
	}()
	return &followed{Conn: c, done: done}, nil
}

// followed is a connection with a watcher that ends with it.
type followed struct {
	net.Conn
	done chan struct{}
	once sync.Once
}

func (f *followed) Close() error {
	f.once.Do(func() { close(f.done) })
	return f.Conn.Close()
}
