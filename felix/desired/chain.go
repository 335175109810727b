package desired

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/muslin-net/muslin/api/view"
)

// Chain is a named list of rules, evaluated from the top. A chain that ends without a decision returns to its caller.
//
// The evaluation has two bits of state for each packet and endpoint, which are all that Calico's semantics (spec §3.1)
// need: allowed, and passed (this tier). Backends keep them in MarkAccept and MarkPass.
type Chain struct {
	Name string
	// In is where it is evaluated; none means Filter. Chains that it jumps to are there too. Denied packets are rejected
	// (Settings.RejectDenied) in Filter only: elsewhere the kernel cannot, and they are dropped.
	In    Layers
	Rules []Rule
}

// Layers are places on a packet's way, as bits of a set: tables to iptables, priorities of hooks to nftables.
type Layers uint8

// The layers.
const (
	Filter Layers = 1 << iota
	Mangle        // PREROUTING and POSTROUTING, around the translation of addresses
	Raw           // before connection tracking
)

// Has tells whether a layer is among them.
func (l Layers) Has(layer Layers) bool {
	return l&layer != 0 || l == 0 && layer == Filter
}

// Equal tells whether two chains are the same to the kernel.
func (c Chain) Equal(o Chain) bool {
	return c.Name == o.Name && max(c.In, Filter) == max(o.In, Filter) && slices.EqualFunc(c.Rules, o.Rules, Rule.Equal)
}

// Action is what a rule does when it matches.
type Action uint8

// The actions.
const (
	Allow  Action = iota + 1 // set allowed and leave the chain; callers check IfAllowed
	Deny                     // drop (or reject); ends all evaluation
	Pass                     // set passed and leave the chain; callers check IfUndecided
	Log                      // write a line to the kernel log and go on
	Jump                     // evaluate Target, then go on
	Return                   // leave the chain
	Reset                    // clear allowed and passed, and go on
	Count                    // leave the chain, and be counted as a decision: one that is not enforced
)

// String is the action's name.
func (a Action) String() string {
	names := [...]string{Allow: "allow", Deny: "deny", Pass: "pass", Log: "log", Jump: "jump", Return: "return", Reset: "reset", Count: "count"}
	if int(a) < len(names) && names[a] != "" {
		return names[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Condition makes a rule depend on the state of the evaluation.
type Condition uint8

// The conditions.
const (
	Always      Condition = iota
	IfUndecided           // neither allowed nor passed
	IfAllowed             // allowed
)

// Rule is one rule of a chain.
type Rule struct {
	If        Condition
	Do        Action
	Match     *Match // nil: every packet. It never changes
	Target    string // name of the chain, for Jump
	LogPrefix string // for Log
	// Comment names what the rule comes from ("np/shop/web ingress 3") and travels with it into the kernel.
	Comment string
}

// Decides tells whether what becomes of a packet may hang on the chain. One without rules may get some that do.
func (c Chain) Decides() bool {
	return !OfStaged(c.Name) && (len(c.Rules) == 0 || slices.ContainsFunc(c.Rules, Rule.Decides))
}

// Decides tells whether what becomes of a packet may hang on the rule. One that does not is left out where something that it names is
// not known; one that does is a drop then.
func (r Rule) Decides() bool { return r.Do != Count && (r.Do != Jump || !OfStaged(r.Target)) }

// Equal tells whether two rules are the same.
func (r Rule) Equal(o Rule) bool {
	return r.If == o.If && r.Do == o.Do && r.Target == o.Target && r.LogPrefix == o.LogPrefix && r.Comment == o.Comment &&
		reflect.DeepEqual(r.Match, o.Match)
}

// Criteria are those of the rule, none if it has none.
func (r Rule) Criteria() Match {
	if r.Match == nil {
		return Match{}
	}
	return *r.Match
}

// Match is the criteria of a rule, all of which must hold; the zero value matches everything. See view.Rule for the
// fields.
type Match struct {
	IPVersion   uint8
	Protocol    view.Protocol
	NotProtocol view.Protocol
	ICMP        *view.ICMP
	NotICMP     *view.ICMP
	Source      view.Match
	Destination view.Match
}

// Sets yields the ids of all sets the match refers to, some perhaps twice.
func (m *Match) Sets() []string {
	if m == nil {
		return nil
	}
	var ids []string
	for _, side := range []view.Match{m.Source, m.Destination} {
		ids = append(ids, side.Sets...)
		ids = append(ids, side.NotSets...)
		ids = append(ids, side.IPPortSets...)
		ids = append(ids, side.NamedPorts...)
		ids = append(ids, side.NotNamedPorts...)
	}
	return ids
}

func matchOf(r view.Rule) *Match {
	return &Match{
		IPVersion: r.IPVersion, Protocol: r.Protocol, NotProtocol: r.NotProtocol, ICMP: r.ICMP, NotICMP: r.NotICMP,
		Source: r.Source, Destination: r.Destination,
	}
}
