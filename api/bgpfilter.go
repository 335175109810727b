package api

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BGPFilter says which routes are exchanged over the peerings that name it. The first rule that matches decides; routes
// that no rule matches are treated as without the filter.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={bgpf,bgpfs},categories=calico
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BGPFilter struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec BGPFilterSpec `json:"spec"`
}

// BGPFilterSpec has one list of rules for each direction and family.
type BGPFilterSpec struct {
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ExportV4 []BGPFilterRuleV4 `json:"exportV4,omitempty"`
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ImportV4 []BGPFilterRuleV4 `json:"importV4,omitempty"`
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ExportV6 []BGPFilterRuleV6 `json:"exportV6,omitempty"`
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	ImportV6 []BGPFilterRuleV6 `json:"importV6,omitempty"`
}

// BGPFilterRuleV4 is a rule for IPv4 routes.
//
// +kubebuilder:validation:XValidation:rule=`!has(self.cidr) || self.cidr == "" || (isCIDR(self.cidr) && cidr(self.cidr).ip().family() == 4 && cidr(self.cidr).masked() == cidr(self.cidr))`,message="cidr must be an IPv4 network with no bits set after its prefix",fieldPath=".cidr"
type BGPFilterRuleV4 struct {
	// PrefixLength limits the match to prefixes of these lengths inside cidr.
	PrefixLength  *BGPFilterPrefixLengthV4 `json:"prefixLength,omitempty"`
	BGPFilterRule `json:",inline"`
}

// BGPFilterRuleV6 is a rule for IPv6 routes.
//
// +kubebuilder:validation:XValidation:rule=`!has(self.cidr) || self.cidr == "" || (isCIDR(self.cidr) && cidr(self.cidr).ip().family() == 6 && cidr(self.cidr).masked() == cidr(self.cidr))`,message="cidr must be an IPv6 network with no bits set after its prefix",fieldPath=".cidr"
type BGPFilterRuleV6 struct {
	// PrefixLength limits the match to prefixes of these lengths inside cidr.
	PrefixLength  *BGPFilterPrefixLengthV6 `json:"prefixLength,omitempty"`
	BGPFilterRule `json:",inline"`
}

// BGPFilterRule is what the rules of both families share. All criteria given must match; a rule without any matches
// every route.
//
// +kubebuilder:validation:XValidation:rule=`(size(self.?cidr.orValue("")) > 0) == (size(self.?matchOperator.orValue("")) > 0)`,message="cidr and matchOperator go together",fieldPath=".matchOperator"
// +kubebuilder:validation:XValidation:rule=`!has(self.prefixLength) || size(self.?cidr.orValue("")) > 0`,message="prefixLength needs cidr",fieldPath=".prefixLength"
// +kubebuilder:validation:XValidation:rule=`!has(self.prefixLength) || !has(self.matchOperator) || !(self.matchOperator in ['Equal', 'NotEqual'])`,message="prefixLength needs matchOperator In or NotIn: no range of lengths equals one prefix",fieldPath=".prefixLength"
// +kubebuilder:validation:XValidation:rule="size(self.?operations.orValue([])) == 0 || self.action == 'Accept'",message="operations need action Accept",fieldPath=".operations"
type BGPFilterRule struct {
	// CIDR is compared with the route's prefix by MatchOperator.
	// +kubebuilder:validation:MaxLength=49
	CIDR string `json:"cidr,omitempty"`
	// Source RemotePeers matches routes that came over BGP.
	// +kubebuilder:validation:Enum=RemotePeers
	Source BGPFilterSource `json:"source,omitempty"`
	// Interface matches the route's outgoing interface; * stands for any characters.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9_.*-]{1,15}$`
	Interface string `json:"interface,omitempty"`
	// MatchOperator says how CIDR is compared.
	MatchOperator BGPFilterMatchOperator `json:"matchOperator,omitempty"`
	// PeerType matches sessions inside the AS or to another.
	PeerType BGPFilterPeerType `json:"peerType,omitempty"`
	// Communities matches routes that carry this community.
	Communities *BGPFilterCommunityMatch `json:"communities,omitempty"`
	// ASPathPrefix matches routes whose AS path begins with these.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	ASPathPrefix []ASNumber `json:"asPathPrefix,omitempty"`
	// Priority matches routes of this kernel priority.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	Priority *int `json:"priority,omitempty"`
	// Action decides about the route.
	Action BGPFilterAction `json:"action"`
	// Operations change an accepted route, in the given order.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +listType=atomic
	Operations []BGPFilterOperation `json:"operations,omitempty"`
}

// BGPFilterPrefixLengthV4 is a range of prefix lengths; an open end is that of the cidr, or 32.
//
// +kubebuilder:validation:XValidation:rule="!has(self.min) || !has(self.max) || self.min <= self.max",message="min is greater than max",fieldPath=".min"
type BGPFilterPrefixLengthV4 struct {
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=32
	Min *int32 `json:"min,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=32
	Max *int32 `json:"max,omitempty"`
}

// BGPFilterPrefixLengthV6 is a range of prefix lengths; an open end is that of the cidr, or 128.
//
// +kubebuilder:validation:XValidation:rule="!has(self.min) || !has(self.max) || self.min <= self.max",message="min is greater than max",fieldPath=".min"
type BGPFilterPrefixLengthV6 struct {
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	Min *int32 `json:"min,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=128
	Max *int32 `json:"max,omitempty"`
}

// BGPFilterSource is where a route came from.
type BGPFilterSource string

// SourceRemotePeers are routes that came over BGP.
const SourceRemotePeers BGPFilterSource = "RemotePeers"

// BGPFilterMatchOperator compares a route's prefix with a rule's cidr.
//
// +kubebuilder:validation:Enum=Equal;NotEqual;In;NotIn
type BGPFilterMatchOperator string

// The operators: In means inside the cidr or equal to it.
const (
	MatchEqual    BGPFilterMatchOperator = "Equal"
	MatchNotEqual BGPFilterMatchOperator = "NotEqual"
	MatchIn       BGPFilterMatchOperator = "In"
	MatchNotIn    BGPFilterMatchOperator = "NotIn"
)

// BGPFilterAction decides about a route.
//
// +kubebuilder:validation:Enum=Accept;Reject
type BGPFilterAction string

// The actions.
const (
	Accept BGPFilterAction = "Accept"
	Reject BGPFilterAction = "Reject"
)

// BGPFilterPeerType is the type of a session.
//
// +kubebuilder:validation:Enum=eBGP;iBGP
type BGPFilterPeerType string

// The types of session: to another AS, and inside one.
const (
	PeerEBGP BGPFilterPeerType = "eBGP"
	PeerIBGP BGPFilterPeerType = "iBGP"
)

// CommunityValue is a standard community aa:nn with 16-bit halves (RFC 1997) or a large one aa:nn:mm with 32-bit parts
// (RFC 8092).
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^(([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]):([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])|([0-9]{1,9}|[1-3][0-9]{9}|4[01][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[01][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]):([0-9]{1,9}|[1-3][0-9]{9}|4[01][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[01][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]):([0-9]{1,9}|[1-3][0-9]{9}|4[01][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[01][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]))$`
type CommunityValue string

// BGPFilterCommunityMatch matches a route that carries the value.
type BGPFilterCommunityMatch struct {
	// Values has exactly one entry.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1
	// +listType=atomic
	Values []CommunityValue `json:"values"`
}

// BGPFilterOperation changes a route in one way: exactly one field is set.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:MaxProperties=1
type BGPFilterOperation struct {
	AddCommunity  *BGPFilterAddCommunity  `json:"addCommunity,omitempty"`
	PrependASPath *BGPFilterPrependASPath `json:"prependASPath,omitempty"`
	SetPriority   *BGPFilterSetPriority   `json:"setPriority,omitempty"`
}

// BGPFilterAddCommunity adds a community to the route.
type BGPFilterAddCommunity struct {
	Value CommunityValue `json:"value"`
}

// BGPFilterPrependASPath puts AS numbers before the route's path, in the written order.
type BGPFilterPrependASPath struct {
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +kubebuilder:validation:items:XValidation:rule="type(self) == int ? self != 0 : !(self in ['0', '0.0'])",message="there is no AS 0"
	// +listType=atomic
	Prefix []ASNumber `json:"prefix"`
}

// BGPFilterSetPriority sets the route's priority, which BGP carries as local preference.
type BGPFilterSetPriority struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	Value int `json:"value"`
}

// Default leaves the filter as it is.
func (f *BGPFilter) Default() {}

// Validate checks the filter.
func (f *BGPFilter) Validate() error {
	var c checker
	c.object(f, subdomainName)
	for _, list := range []struct {
		name  string
		rules []BGPFilterRuleV4
	}{{"exportV4", f.Spec.ExportV4}, {"importV4", f.Spec.ImportV4}} {
		for i := range list.rules {
			r, at := &list.rules[i], path("spec").at(list.name).index(i)
			var length *prefixLength
			if r.PrefixLength != nil {
				length = &prefixLength{r.PrefixLength.Min, r.PrefixLength.Max}
			}
			r.check(&c, at, ipv4, length)
		}
	}
	for _, list := range []struct {
		name  string
		rules []BGPFilterRuleV6
	}{{"exportV6", f.Spec.ExportV6}, {"importV6", f.Spec.ImportV6}} {
		for i := range list.rules {
			r, at := &list.rules[i], path("spec").at(list.name).index(i)
			var length *prefixLength
			if r.PrefixLength != nil {
				length = &prefixLength{r.PrefixLength.Min, r.PrefixLength.Max}
			}
			r.check(&c, at, ipv6, length)
		}
	}
	return c.err()
}

// prefixLength is the range of either family.
//
// +kubebuilder:object:generate=false
type prefixLength struct {
	min, max *int32
}

func (r *BGPFilterRule) check(c *checker, at path, f family, length *prefixLength) {
	if r.Action == "" {
		c.bad(at.at("action"), nil, "is missing", "write Accept or Reject")
	} else {
		oneOf(c, at.at("action"), r.Action, Accept, Reject)
	}
	optionalOneOf(c, at.at("source"), r.Source, SourceRemotePeers)
	optionalOneOf(c, at.at("matchOperator"), r.MatchOperator, MatchEqual, MatchNotEqual, MatchIn, MatchNotIn)
	optionalOneOf(c, at.at("peerType"), r.PeerType, PeerEBGP, PeerIBGP)
	if r.Interface != "" && !interfaceGlob.MatchString(r.Interface) {
		c.bad(at.at("interface"), r.Interface, "is not a pattern of interface names", "write 1 to 15 letters, digits, _ . - and * for any characters")
	}
	if r.CIDR != "" {
		c.net(at.at("cidr"), r.CIDR, f)
	}
	switch {
	case r.CIDR != "" && r.MatchOperator == "":
		c.bad(at.at("matchOperator"), nil, "is missing beside cidr "+r.CIDR, "write Equal, NotEqual, In or NotIn")
	case r.CIDR == "" && r.MatchOperator != "":
		c.bad(at.at("cidr"), nil, "is missing beside matchOperator "+string(r.MatchOperator), "write the network to compare with")
	}
	if length != nil {
		r.checkLength(c, at.at("prefixLength"), f, *length)
	}
	if r.Priority != nil {
		between(c, at.at("priority"), *r.Priority, 1, maxPriority)
	}
	if r.Communities != nil {
		values := at.at("communities").at("values")
		if len(r.Communities.Values) != 1 {
			c.bad(values, len(r.Communities.Values), "is the number of values, but exactly one can be matched", "write one value; write several rules for several")
		}
		for i, v := range r.Communities.Values {
			c.community(values.index(i), string(v))
		}
	}
	r.checkOperations(c, at.at("operations"))
}

func (r *BGPFilterRule) checkLength(c *checker, at path, f family, length prefixLength) {
	most := int32(32)
	if f == ipv6 {
		most = 128
	}
	for _, end := range []struct {
		name  string
		value *int32
	}{{"min", length.min}, {"max", length.max}} {
		if end.value != nil {
			between(c, at.at(end.name), *end.value, 0, most)
		}
	}
	if length.min != nil && length.max != nil && *length.min > *length.max {
		c.bad(at.at("min"), *length.min, fmt.Sprintf("is greater than max, %d", *length.max), "swap the two")
	}
	switch {
	case r.CIDR == "":
		c.bad(at, nil, "is given without cidr", "write the network it belongs to, or cidr 0.0.0.0/0 or ::/0 for all")
	case r.MatchOperator == MatchEqual || r.MatchOperator == MatchNotEqual:
		c.bad(at, nil, "cannot be combined with matchOperator "+string(r.MatchOperator)+": no range of lengths equals one prefix", "write matchOperator In or NotIn")
	}
}

// maxPriority is the greatest route priority.
const maxPriority = 1<<31 - 2

func (r *BGPFilterRule) checkOperations(c *checker, at path) {
	if len(r.Operations) == 0 {
		return
	}
	if r.Action != Accept {
		c.bad(at, nil, "is given, but the rule does not accept the route", "write action: Accept, or remove the operations")
	}
	c.atMost(at, len(r.Operations), 10)
	for i, o := range r.Operations {
		here := at.index(i)
		given := 0
		if o.AddCommunity != nil {
			given++
			c.community(here.at("addCommunity").at("value"), string(o.AddCommunity.Value))
		}
		if o.PrependASPath != nil {
			given++
			if n := len(o.PrependASPath.Prefix); n < 1 || n > 10 {
				c.bad(here.at("prependASPath").at("prefix"), n, "is the number of AS numbers", "write 1 to 10 of them")
			}
			for j, as := range o.PrependASPath.Prefix {
				c.asNumber(here.at("prependASPath").at("prefix").index(j), &as)
			}
		}
		if o.SetPriority != nil {
			given++
			between(c, here.at("setPriority").at("value"), o.SetPriority.Value, 1, maxPriority)
		}
		if given != 1 {
			c.bad(here, nil, "does not have exactly one of addCommunity, prependASPath and setPriority", "write one entry for each operation")
		}
	}
}
