//go:build lab

package suite

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestBadPeerings: peerings that make no sense, given to nodes that have good ones. What is wrong is refused, or said, and no
// session of others notices.
func TestBadPeerings(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-badpeer")
	tor := c.router(t, vendorBIRD, theToR, torConf{as: torAS, nodes: ownAS}.text(vendorBIRD))
	c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]"))
	c.awaitToR(t)
	pod := firstOf(c.pod(t, "pod-1"), false)
	beats, before := c.beats(t, theClient, pod), tor.since()

	for _, bad := range []struct{ name, doc, want string }{
		{"negative number", peering("x", "all()", "10.30.0.1", 65001, "numAllowedLocalASNumbers: -1"), "numAllowedLocalASNumbers"},
		{"AS beyond four bytes", strings.ReplaceAll(peering("x", "all()", "10.30.0.99", 65001), "65001", "4294967296"), "asNumber"},
		{"no address", peering("x", "all()", "10.30.0.256", 65001), "peerIP"},
		{"link-local address", peering("x", "all()", "fe80::1%eth0", 65001), "peerIP"},
		{"two peers in one", peering("x", "all()", "10.30.0.99", 65001, "peerSelector: all()"), "peerSelector"},
		{"community that is none", bgpConfiguration(`prefixAdvertisements: [{cidr: 192.168.0.0/16, communities: ["1:70000"]}]`), "communities"},
		{"filter with half a match", "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: x}\nspec: {importV4: [{action: Accept, cidr: 10.0.0.0/8}]}\n", "matchOperator"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			said, ok := c.calicoctl(t, bad.doc, "apply", "-f", "-")
			assert.False(t, ok, "it is refused")
			assert.Contains(t, said, bad.want)
		})
	}

	c.apply(t, peering("oneself", "rack == 'left'", "10.30.0.206", ownAS)+ // a node of the mesh to the others, itself to worker-1
		peering("tor-again", "rack == 'left'", "10.30.0.1", torAS, "password: {secretKeyRef: {name: none, key: none}}")+
		peering("left4", "rack == 'left'", "10.30.0.1", torAS, "filters: [own-routes, no-such-filter]")+
		peering("nobody", "rack == 'left'", "10.30.0.99", 65099)+
		peering("wrong-as", "rack == 'right'", "fd00:30::1", 64999))
	c.awaitDown(t, "worker-1", "10.30.0.99")
	c.awaitDown(t, "worker-3", "fd00:30::1")
	assert.NotContains(t, c.sessions(t, "worker-1"), "10.30.0.206", "nobody peers with oneself")
	said := c.log(t, victim{"worker-1", "confd"})
	assert.Contains(t, said, "no-such-filter")
	assert.Contains(t, said, "BGPPeer(tor-again)", "of two peerings with one address the second is named")
	tor.stayedUp(t, before, "the good sessions")
	c.awaitUp(t, "worker-2", "10.30.0.206")
	c.reaches(t, "pod-2", pod)
	c.awaitCondition(t, "worker-1", "False", "PeersDown", "10.30.0.99 of BGPPeer(nobody): ")
	c.run(t, "worker-1", "calico-node", "-bird-ready")
	for _, name := range []string{"oneself", "tor-again", "nobody", "wrong-as"} {
		c.run(t, "master", "calicoctl", "delete", "bgppeer", name)
	}
	c.awaitUp(t, "worker-2", "10.30.0.206")
	tor.stayedUp(t, before, "the good sessions")
	c.awaitCondition(t, "worker-1", "True", "PeersUp")
	beats.lostNone(t, "bad peerings came and went")
}
