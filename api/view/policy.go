package view

import "net/netip"

// Protocol is an IP protocol number; 0 means none given.
type Protocol uint8

// Action is what a matching rule does.
type Action uint8

// The actions (spec §3.1).
const (
	Allow Action = iota + 1
	Deny
	Pass
	Log
)

// PortRange is an inclusive range of ports.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// ICMP matches a type and, if Code is given, a code.
type ICMP struct {
	Type uint8  `json:"type"`
	Code *uint8 `json:"code,omitempty"`
}

// Match is one side of a rule. All given criteria must hold; within a list one entry is enough, except that each of
// Sets and none of NotSets must hold. Ports and NamedPorts are one list: one hit in either is enough.
type Match struct {
	Nets          []netip.Prefix `json:"nets,omitempty"`
	NotNets       []netip.Prefix `json:"notNets,omitempty"`
	Sets          []string       `json:"sets,omitempty"`    // ids of SetNet sets
	NotSets       []string       `json:"notSets,omitempty"` // ids of SetNet sets
	IPPortSets    []string       `json:"ipPortSets,omitempty"`
	Ports         []PortRange    `json:"ports,omitempty"`
	NamedPorts    []string       `json:"namedPorts,omitempty"` // ids of SetIPPort sets
	NotPorts      []PortRange    `json:"notPorts,omitempty"`
	NotNamedPorts []string       `json:"notNamedPorts,omitempty"` // ids of SetIPPort sets
}

// Rule is one rule with its selectors already resolved to set ids. A rule without criteria matches everything.
type Rule struct {
	Action      Action            `json:"action"`
	IPVersion   uint8             `json:"ipVersion,omitempty"` // 4, 6, or 0 for both
	Protocol    Protocol          `json:"protocol,omitempty"`
	NotProtocol Protocol          `json:"notProtocol,omitempty"`
	ICMP        *ICMP             `json:"icmp,omitempty"`
	NotICMP     *ICMP             `json:"notICMP,omitempty"`
	Source      Match             `json:"source"`
	Destination Match             `json:"destination"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// HTTP limits the rule to some requests, for the proxy in the pod; the kernel lets all of them pass.
	HTTP *HTTP `json:"http,omitempty"`
}

// HTTP matches requests: any of the methods together with any of the paths; an empty list matches all.
type HTTP struct {
	Methods []string   `json:"methods,omitempty"`
	Paths   []HTTPPath `json:"paths,omitempty"`
}

// HTTPPath matches a request's path: the whole of it, or its beginning. One of the two is given.
type HTTPPath struct {
	Exact  string `json:"exact,omitempty"`
	Prefix string `json:"prefix,omitempty"`
}

// Policy is the rules of one policy or profile. Its id is "<short kind>/<namespace>/<name>", without the namespace for
// cluster-wide kinds; short kinds are np, gnp, knp, kcnp, snp, sgnp, sknp, and pro for profiles.
type Policy struct {
	ID             string
	Tier           string // empty for profiles
	Ingress        []Rule
	Egress         []Rule
	DoNotTrack     bool
	PreDNAT        bool
	ApplyOnForward bool
	Staged         bool // evaluated and counted, never enforced
}

// Key is the policy's id.
func (p Policy) Key() Key { return Key{KindPolicy, p.ID} }

// TierPolicies are the policies of one tier that apply to an endpoint, in order, for each direction.
type TierPolicies struct {
	Name          string   `json:"name"`
	DefaultAction Action   `json:"defaultAction"` // Deny or Pass
	Ingress       []string `json:"ingress,omitempty"`
	Egress        []string `json:"egress,omitempty"`
}

// PolicyList is what applies to an endpoint: tiers in order, then profiles in order. Endpoints with equal lists share one,
// its id being a hash of its content, so a policy that matches 500 endpoints is one change in the kernel.
type PolicyList struct {
	ID       string
	Tiers    []TierPolicies
	Profiles []string // ids of profile policies
}

// Key is the list's id.
func (l PolicyList) Key() Key { return Key{KindPolicyList, l.ID} }
