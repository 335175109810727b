//go:build lab

package rulestest

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// What others write next to us, in the words of their programs: ufw accepts a port (81) that policy denies, kube-proxy
// translates services and masquerades what it marks, docker hooks FORWARD, firewalld rejects a port (82) that policy allows.
const (
	ufw = `IPT -N ufw-before-forward; IPT -A FORWARD -j ufw-before-forward
		IPT -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		IPT -A ufw-before-forward -p tcp --dport 81 -j ACCEPT`
	kubeProxy = `IPT -t nat -N KUBE-SERVICES; IPT -t nat -A PREROUTING -j KUBE-SERVICES; IPT -t nat -A OUTPUT -j KUBE-SERVICES
		IPT -t nat -N KUBE-MARK-MASQ; IPT -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
		IPT -t nat -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 8000 -j DNAT --to-destination 10.0.1.2:80
		IPT -t nat -A KUBE-SERVICES -d 10.96.0.2/32 -p tcp --dport 8000 -j DNAT --to-destination 10.0.1.2:81
		IPT -t nat -A KUBE-SERVICES -d 10.96.0.3/32 -p tcp --dport 8000 -j KUBE-MARK-MASQ
		IPT -t nat -A KUBE-SERVICES -d 10.96.0.3/32 -p tcp --dport 8000 -j DNAT --to-destination 192.168.9.2:80
		IPT -t nat -N KUBE-POSTROUTING; IPT -t nat -A POSTROUTING -j KUBE-POSTROUTING
		IPT -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
		IPT -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000; IPT -t nat -A KUBE-POSTROUTING -j MASQUERADE
		IPT -N KUBE-FORWARD; IPT -A FORWARD -j KUBE-FORWARD; IPT -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT`
	docker = `IPT -N DOCKER-USER; IPT -I FORWARD -j DOCKER-USER; IPT -A DOCKER-USER -j RETURN
		IPT -N DOCKER-FORWARD; IPT -A FORWARD -j DOCKER-FORWARD; IPT -A DOCKER-FORWARD -i docker0 -j ACCEPT`
	firewalld = `nft 'table inet firewalld {
			chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
				ct state { established, related } accept; tcp dport 82 reject with icmpx admin-prohibited; }
			chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; oifname "eno1" masquerade; }
		}'`
)

// Next to others our rules hold, theirs stay as they are and hold too, and what they do away with of ours comes back.
func (k Kind) testNextToOthers(t *testing.T) {
	for _, variant := range []string{"legacy", "nft"} {
		t.Run("in iptables-"+variant, func(t *testing.T) { k.nextToOthers(t, variant) })
	}
}

func (k Kind) nextToOthers(t *testing.T, variant string) {
	w := k.NewWorld(t)
	do := func(commands string) string {
		t.Helper()
		// Our driver may have the lock.
		return w.Node.Run(t, strings.NewReplacer("IPT-restore", "iptables-"+variant+"-restore -w 60", "IPT", "iptables-"+variant+" -w 60").Replace(commands))
	}
	for _, p := range []string{":80", ":81", ":82"} {
		w.Listen(w.B, p)
	}
	clients := w.Listen(w.Outside, ":80")
	do(ufw + "\n" + kubeProxy + "\n" + docker + "\n" + firewalld)
	theirs := func() string {
		return do("(IPT -S; IPT -t nat -S) 2>/dev/null | grep -v cali; nft list table inet firewalld")
	}
	before := theirs()

	policy := view.Policy{ID: "np/s/web", Ingress: []view.Rule{
		{Action: view.Allow, Protocol: tcp, Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}, {First: 82, Last: 82}}}},
	}}
	list := view.PolicyList{ID: "web", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy.ID}}}, Profiles: []string{"pro/all"}}
	d := Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under("web")}, append(OpenLists, list), policy, AllowAll)
	w.Driver.Whole()
	w.Apply(d)
	w.Watch()
	hold := func(when string) {
		t.Helper()
		w.Passes(w.A, AddrB+":80", true, when+": allowed")
		w.Passes(w.A, AddrB+":81", false, when+": denied, whatever ufw accepts")
		w.Passes(w.A, "["+SixB+"]:81", false, when+": denied")
		w.Passes(w.A, "10.96.0.1:8000", true, when+": a service, allowed to what is behind it")
		w.Passes(w.A, "10.96.0.2:8000", false, when+": a service, denied to what is behind it")
		w.Passes(w.A, AddrB+":82", false, when+": firewalld rejects it")
		w.Passes(w.A, "10.96.0.3:8000", true, when+": out of the cluster")
		assert.Equal(t, NodeAddr, (<-clients).String(), when+": masqueraded as kube-proxy marked it")
	}
	hold("beside")
	assert.Equal(t, before, theirs(), "theirs stay")

	// Ours, as a restart of theirs finds and leaves it: all of it gone, or no longer first.
	ours := func() string { // what was made anew is listed last
		out, err := w.Node.Try("(" + k.List + ") | sort")
		if err != nil {
			return err.Error()
		}
		return out
	}
	want := ours()
	for _, c := range []struct{ who, what string }{
		{"docker starts", "IPT -D FORWARD -j DOCKER-USER; IPT -I FORWARD -j DOCKER-USER"},
		{"firewalld starts", "nft delete table inet firewalld\n" + firewalld},
		{"netfilter-persistent loads", "printf '*filter\\nCOMMIT\\n*nat\\nCOMMIT\\n*mangle\\nCOMMIT\\n*raw\\nCOMMIT\\n' | IPT-restore\n" + ufw + "\n" + kubeProxy + "\n" + docker},
		{"nftables.service loads", "nft flush ruleset\n" + firewalld + map[string]string{"nft": "\n" + ufw + "\n" + kubeProxy + "\n" + docker}[variant]},
	} {
		do(c.what)
		require.Eventually(t, func() bool { return w.Driver.InSync() && ours() == want }, Patience, 10*time.Millisecond, c.who)
		hold(c.who)
		assert.Equal(t, before, theirs(), c.who)
	}
}
