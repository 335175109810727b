package agent

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// scrapeTime bounds reading the kernel's counters for one scrape.
const scrapeTime = 5 * time.Second

var (
	ruleLabels  = []string{"tier", "policy", "direction", "rule", "action"}
	rulePackets = prometheus.NewDesc("felix_policy_rule_packets_total",
		"Packets that a rule decided on: the first of each connection. Begins at 0 when the policy changes. Rule -1 is the end of a tier, or of all.", ruleLabels, nil)
	ruleBytes = prometheus.NewDesc("felix_policy_rule_bytes_total", "Bytes of these packets.", ruleLabels, nil)
	// The names and the form of the label are those that dashboards for Calico have.
	deniedPackets = prometheus.NewDesc("calico_denied_packets", "Packets that a rule denied; policy is tier|policy|rule|deny.", []string{"policy"}, nil)
	deniedBytes   = prometheus.NewDesc("calico_denied_bytes", "Bytes of these packets.", []string{"policy"}, nil)
	cutTotal      = prometheus.NewDesc("felix_cut_connections_total", "Established connections that were cut since policy had come to forbid them.", nil, nil)
	ipipPackets   = prometheus.NewDesc("felix_ipip_packets_total",
		"Packets of IP-in-IP by BPF: sent to other nodes, taken from them, or the reason why one was neither.", []string{"reason"}, nil)
)

// Metrics collects what policy and IP-in-IP did, from the kernel's counters, when it is asked.
type Metrics struct {
	Agent   *Agent
	Drivers *Drivers
}

// Describe tells what is collected.
func (m Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{rulePackets, ruleBytes, deniedPackets, deniedBytes, cutTotal, ipipPackets} {
		out <- d
	}
}

// Collect reads the counters.
func (m Metrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	out <- prometheus.MustNewConstMetric(cutTotal, prometheus.CounterValue, float64(m.Drivers.cuts.total()))
	m.Drivers.collectIPIP(out)
	counted, err := m.Drivers.Counters(ctx)
	if err == nil {
		var rows []account
		if rows, err = look(ctx, m.Agent, func(s *state.State) []account { return accounts(s, counted) }); err == nil {
			collect(rows, out)
			return
		}
	}
	out <- prometheus.NewInvalidMetric(rulePackets, fmt.Errorf("the counters of rules: %w", err))
}

// collectIPIP tells what became of packets in IP-in-IP, if that is known.
func (d *Drivers) collectIPIP(out chan<- prometheus.Metric) {
	packets, err := d.ipip.Counters()
	if err != nil {
		out <- prometheus.NewInvalidMetric(ipipPackets, fmt.Errorf("the counters of IP-in-IP: %w", err))
	}
	for reason, n := range packets {
		out <- prometheus.MustNewConstMetric(ipipPackets, prometheus.CounterValue, float64(n), reason)
	}
}

// account is a rule of a policy, or an end, with what it decided.
type account struct {
	tier, policy, direction, action string
	rule                            int
	packets, bytes                  uint64
}

func collect(rows []account, out chan<- prometheus.Metric) {
	add := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	denied := map[string]account{}
	for _, a := range rows {
		rule := strconv.Itoa(a.rule)
		add(rulePackets, a.packets, a.tier, a.policy, a.direction, rule, a.action)
		add(ruleBytes, a.bytes, a.tier, a.policy, a.direction, rule, a.action)
		if a.action == "deny" { // of both directions
			label := strings.Join([]string{a.tier, a.policy, rule, a.action}, "|")
			sum := denied[label]
			denied[label] = account{packets: sum.packets + a.packets, bytes: sum.bytes + a.bytes}
		}
	}
	for label, sum := range denied {
		add(deniedPackets, sum.packets, label)
		add(deniedBytes, sum.bytes, label)
	}
}

// accounts adds counters up by rule. Those of ends are of all policy lists.
func accounts(s *state.State, counted []dataplane.Counter) []account {
	byRule := map[account]int{}
	var out []account
	for _, c := range counted {
		key, ok := accountOf(s, c)
		if !ok {
			continue
		}
		i, met := byRule[key]
		if !met {
			i = len(out)
			byRule[key] = i
			out = append(out, key)
		}
		out[i].packets += c.Packets
		out[i].bytes += c.Bytes
	}
	return out
}

// accountOf reads a rule's comment.
func accountOf(s *state.State, c dataplane.Counter) (account, bool) {
	direction := desired.DirectionOf(c.Chain).String()
	if tier, is := strings.CutPrefix(c.Comment, "end of tier "); is {
		return account{tier: tier, direction: direction, rule: -1, action: "deny"}, true
	}
	if c.Comment == "no profile decided" {
		return account{direction: direction, rule: -1, action: "deny"}, true
	}
	words := strings.Fields(c.Comment)
	if len(words) != 3 {
		return account{}, false
	}
	p, known := s.Policies[words[0]]
	rule, err := strconv.Atoi(words[2])
	rules := p.Ingress
	if words[1] == desired.Egress.String() {
		rules = p.Egress
	}
	if !known || err != nil || rule < 0 || rule >= len(rules) {
		return account{}, false
	}
	action := map[view.Action]string{view.Allow: "allow", view.Deny: "deny", view.Pass: "pass", view.Log: "log"}[rules[rule].Action]
	if desired.Staged(p.ID) {
		action = "staged " + action
	}
	return account{tier: p.Tier, policy: p.ID, direction: words[1], rule: rule, action: action}, true
}
