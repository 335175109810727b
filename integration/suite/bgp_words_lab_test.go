//go:build lab

package suite

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestMistakesAreTold: mistakes in resources are refused where that can be, and otherwise told by calicoctl node status of the
// nodes that they concern.
func TestMistakesAreTold(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-words")
	c.router(t, vendorBIRD, theToR, torConf{as: torAS, nodes: ownAS}.text(vendorBIRD))
	c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]"))
	c.awaitToR(t)

	filter := func(rule string) string {
		return "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: x}\nspec: {exportV4: [{action: Accept, " + rule + "}]}\n"
	}
	for name, bad := range map[string]struct{ doc, want string }{
		"AS 0 shown to a peer":         {peering("x", "all()", "10.30.0.99", 65001, "localASNumber: 0"), "localASNumber: 0: is no AS number that anyone can have"},
		"AS 0 of the cluster":          {bgpConfiguration("asNumber: 0"), "asNumber: 0: is no AS number that anyone can have"},
		"AS 0 in a path":               {filter("operations: [{prependASPath: {prefix: [0]}}]"), "prefix[0]: 0: is no AS number that anyone can have"},
		"community to match":           {filter(`communities: {values: ["65536:1"]}`), "65536:1"},
		"community to add":             {filter(`operations: [{addCommunity: {value: "1:2:3:4"}}]`), "1:2:3:4"},
		"community by an unknown name": {bgpConfiguration("prefixAdvertisements: [{cidr: 192.168.0.0/16, communities: [nobody]}]"), "is neither a community nor the name of one"},
	} {
		said, ok := c.calicoctl(t, bad.doc, "apply", "-f", "-")
		assert.False(t, ok, name)
		assert.Contains(t, said, bad.want, name)
	}

	c.apply(t, "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: oneself}\nspec: {node: worker-1, peerIP: 10.30.0.206, asNumber: 64512}\n"+
		peering("tor-again", "rack == 'left'", "10.30.0.1", torAS)+
		peering("tor-port", "rack == 'left'", `10.30.0.1:1179`, torAS)+
		peering("left4", "rack == 'left'", "10.30.0.1", torAS, "filters: [own-routes, no-such-filter]")+
		strings.ReplaceAll(peering("no-as", "rack == 'left'", "10.30.0.98", 1), ", asNumber: 1", ""))
	for _, want := range []string{
		"BGPPeer(oneself).spec.peerIP: 10.30.0.206 is the node's own address; there is no session",
		"BGPPeer(tor-again): BGPPeer(left4) has the session with 10.30.0.1:179 already",
		"Down: the address is ",
		`BGPPeer(left4).spec.filters: there is no BGPFilter "no-such-filter"; it filters nothing`,
		"BGPPeer(no-as).spec.asNumber: is missing, or 0; it is taken as the cluster's, 64512",
	} {
		eventually(t, patience, func() string {
			if said := c.run(t, "worker-1", "calicoctl", "node", "status"); !strings.Contains(said, want) {
				return fmt.Sprintf("node status does not say %q: %s", want, said)
			}
			return ""
		})
	}
	assert.NotContains(t, c.run(t, "worker-3", "calicoctl", "node", "status"), "Warning", "it is not concerned")
}

// TestSeverity: what BGPConfiguration says of logs holds at once, for confd and for bird, and what it says of one node for that
// node.
func TestSeverity(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-severity")
	ofConfd, ofBird := victim{"worker-1", lab.ProcessConfd}, victim{"worker-1", lab.ProcessBird}
	lines := func(v victim, words string) int { return strings.Count(c.log(t, v), words) }
	// changes has the configuration of all nodes change, and waits until bird of the node runs it.
	number := 0
	changes := func() {
		t.Helper()
		number++
		address := fmt.Sprintf("10.30.0.%d", 100+number)
		c.apply(t, peering("change", "all()", address, torAS))
		eventually(t, patience, func() string {
			if _, ok := c.sessions(t, "worker-1")[address]; !ok {
				return "there is no session with " + address
			}
			return ""
		})
	}
	says := func(v victim, words string) {
		t.Helper()
		before := lines(v, words)
		eventually(t, patience, func() string {
			changes()
			if lines(v, words) == before {
				return fmt.Sprintf("%v does not say %q", v, words)
			}
			return ""
		})
	}
	set := func(name, severity string) {
		t.Helper()
		c.apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: "+name+"}\nspec: {logSeverityScreen: "+severity+"}\n")
	}
	const applied, debug = "msg=applied", "level=DEBUG"
	says(ofConfd, applied)
	says(ofBird, applied)
	assert.Zero(t, lines(ofConfd, debug)+lines(ofBird, debug))

	set("default", "Debug")
	says(ofConfd, debug)
	says(ofBird, debug)

	set("node.worker-1", "Error")
	changes() // by now it holds
	before := [...]int{lines(ofConfd, applied), lines(ofConfd, debug), lines(ofBird, applied), lines(ofBird, debug)}
	changes()
	assert.Equal(t, before, [...]int{lines(ofConfd, applied), lines(ofConfd, debug), lines(ofBird, applied), lines(ofBird, debug)})

	c.run(t, "master", "calicoctl", "delete", "bgpconfiguration", "node.worker-1")
	says(ofConfd, debug)
	says(ofBird, debug)
}
