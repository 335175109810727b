//go:build lab

package main_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/muslin-net/muslin/bird/client"
)

// TestLinksAreWatchedBesideOthers has another process, such as felix, follow the links of a machine on which bird starts: what
// bird asks the kernel is not to reach it.
func TestLinksAreWatchedBesideOthers(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", "10.99.0.1/24"), w.node("b", "10.99.0.2/24")
	nodes := []*node{a, b}
	for _, n := range nodes {
		n.announce()
		n.apply(config(1, n, nodes))
	}
	up := func() bool { return a.peer(b.address).State == client.Established }
	soon(t, "the session is up", up)

	ns, err := netns.GetFromName(a.ns)
	require.NoError(t, err)
	defer ns.Close()
	disturbed, news, done := make(chan error, 1), make(chan netlink.LinkUpdate), make(chan struct{})
	defer close(done)
	require.NoError(t, netlink.LinkSubscribeWithOptions(news, done, netlink.LinkSubscribeOptions{Namespace: &ns, ErrorCallback: func(err error) { disturbed <- err }}))
	a.kill()
	a.start()
	soon(t, "the session is up again", up)

	run(t, "ip", "-n", a.ns, "link", "set", "dev", "eth0", "down")
	for seen := false; !seen; {
		select {
		case err := <-disturbed:
			t.Fatal(err)
		case u := <-news:
			seen = u.Attrs().Name == "eth0" && u.Attrs().OperState == netlink.OperDown
		}
	}
	soon(t, "bird watches, too", func() bool { return a.peer(b.address).LastError == "link eth0 is down" })
}
