//go:build lab

package rulestest

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// allNamespaces has packets of network namespaces other than the machine's own logged too. Only in that one is it to be seen.
const allNamespaces = "/proc/sys/net/netfilter/nf_log_all_netns"

// KernelLog is what the kernel says from now on, also about packets of the namespaces of tests.
type KernelLog struct {
	t    testing.TB
	fd   int
	said []string
}

// ListenToKernel begins to listen until the test ends. One test does at a time on a machine, so that each restores what it found.
func ListenToKernel(t testing.TB) *KernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	require.NoError(t, err, "the kernel's log cannot be read")
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Flock(fd, unix.LOCK_EX))
	write := func(value []byte) {
		t.Helper()
		done := make(chan error)
		go func() { done <- os.WriteFile(allNamespaces, value, 0) }() // the test's own thread is in another namespace
		require.NoError(t, <-done, "lines about packets are written in the machine's own network namespace only, in which go test must be started")
	}
	was := make(chan []byte)
	go func() {
		value, _ := os.ReadFile(allNamespaces)
		was <- value
	}()
	before := <-was
	write([]byte("1"))
	t.Cleanup(func() { write(before) })
	_, err = unix.Seek(fd, 0, unix.SEEK_END)
	require.NoError(t, err)
	return &KernelLog{t: t, fd: fd}
}

// Await waits for a line, without the record's head, that matches an expression.
func (l *KernelLog) Await(line string) {
	l.t.Helper()
	want := regexp.MustCompile(line)
	seen := 0
	for end := time.Now().Add(Patience); ; {
		for ; seen < len(l.said); seen++ {
			if want.MatchString(l.said[seen]) {
				return
			}
		}
		if time.Now().After(end) {
			require.Fail(l.t, "the kernel has not said so", "%s\nbut:\n%s", line, strings.Join(l.said, "\n"))
		}
		l.read()
	}
}

// read takes what there is, or waits a little.
func (l *KernelLog) read() {
	record := make([]byte, 8192)
	n, err := unix.Read(l.fd, record)
	switch {
	case errors.Is(err, unix.EAGAIN):
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 100)
	case errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR): // what was overwritten meanwhile is not there to be read
	default:
		require.NoError(l.t, err)
		_, text, _ := bytes.Cut(record[:n], []byte(";"))
		first, _, _ := bytes.Cut(text, []byte("\n"))
		l.said = append(l.said, string(first))
	}
}

// Log rules write a line with the prefix that was asked for, in both families, and the next rule decides; those of staged policies
// write nothing. iptables cuts prefixes, and the end of it can be told nevertheless.
func (k Kind) testLog(t *testing.T) {
	w := k.NewWorld(t)
	w.Listen(w.B, ":8311")
	w.Listen(w.B, ":8312")
	log := ListenToKernel(t)
	long := "default/np/shop/web-of-the-shop-with-a-long-name"
	cut := long
	if k.Name != "nftables" {
		cut = long[:27]
	}
	for _, c := range []struct{ name, template, want string }{
		{"web", "", "calico-packet"},
		{"web", "%t %k:%n", "default np:web"},
		{"web-of-the-shop-with-a-long-name", "%t/%k/%p", cut},
	} {
		rules := func(log uint16) []view.Rule {
			return []view.Rule{{Action: view.Log, Protocol: tcp, Destination: view.Match{Ports: Port(log)}}, {Action: view.Allow}}
		}
		policy := view.Policy{ID: "np/shop/" + c.name, Tier: "default", Ingress: rules(8311)}
		staged := view.Policy{ID: "snp/shop/" + c.name, Tier: "default", Staged: true, Ingress: rules(8312)}
		list := view.PolicyList{ID: "web", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{staged.ID, policy.ID}}}}
		d := Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under("web")}, append(OpenLists, list), AllowAll)
		for _, p := range []view.Policy{policy, staged} {
			for _, chain := range desired.PolicyChains(p, c.template) {
				d.Chains.Put(chain.Name, chain)
			}
		}
		w.Apply(d)
		for to, ends := range map[string]string{
			AddrB:            `SRC=10\.0\.1\.1 DST=10\.0\.1\.2 `,
			"[" + SixB + "]": `SRC=fd00:0001:0000:0000:0000:0000:0000:0001 DST=fd00:0001:0000:0000:0000:0000:0000:0002 `,
		} {
			w.Passes(w.A, to+":8312", true, "a rule behind the Log rule allows it")
			w.Passes(w.A, to+":8311", true, "a rule behind the Log rule allows it")
			log.Await("^" + regexp.QuoteMeta(c.want) + ": IN=cali1 OUT=cali2 .*" + ends + ".*PROTO=TCP .*DPT=8311 .*SYN")
		}
	}
	for _, line := range log.said {
		assert.NotContains(t, line, "DPT=8312", "not logged, or by a staged policy only")
	}
}

// A limit lets as many lines through as may come at once, of each family, and no other packet is any different for it. It holds for
// rules that are there already.
func (k Kind) testLogLimit(t *testing.T) {
	w := k.NewWorld(t)
	w.Listen(w.B, ":8313")
	w.Listen(w.B, ":8314")
	log := ListenToKernel(t)
	rule := func(port uint16) view.Rule {
		return view.Rule{Action: view.Log, Protocol: tcp, Destination: view.Match{Ports: Port(port)}}
	}
	policy := view.Policy{ID: "np/shop/limited", Tier: "default", Ingress: []view.Rule{rule(8313), rule(8314), {Action: view.Allow}}}
	list := view.PolicyList{ID: "web", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy.ID}}}}
	d := Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under("web")}, append(OpenLists, list), AllowAll, policy)
	w.Apply(d)
	limited := *d.Settings
	limited.LogLimit = desired.Limit{Rate: 1, Per: time.Hour, Burst: 2}
	w.Apply(desired.FirewallDelta{Settings: &limited})
	for _, to := range []struct{ address, logged string }{{AddrB, "DST=10.0.1.2 "}, {"[" + SixB + "]", "DST=fd00:0001:"}} {
		for range 4 {
			w.Passes(w.A, to.address+":8313", true, "a rule behind the Log rule allows it")
		}
		w.Passes(w.A, to.address+":8314", true, "a rule behind the Log rule allows it")
		log.Await(regexp.QuoteMeta(to.logged) + ".*DPT=8314 ") // behind all lines of the other rule
		lines := 0
		for _, line := range log.said {
			if strings.Contains(line, to.logged) && strings.Contains(line, "DPT=8313 ") {
				lines++
			}
		}
		assert.Equal(t, 2, lines, "%s: %s", to.address, strings.Join(log.said, "\n"))
	}
}
