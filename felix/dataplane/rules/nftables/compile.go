package nftables

import (
	"crypto/sha256"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/desired"
)

// rule is a rule as it is written.
type rule struct {
	expr    nft.Expr
	comment string // with the digest of expr; identifies the rule
}

// chain is a chain as it is written. base is nil for one that others jump to.
type chain struct {
	base  *nft.Base
	rules []rule
	idle  bool // it decides nothing
}

// equal compares what can be read back.
func (c chain) equal(o chain) bool {
	if (c.base == nil) != (o.base == nil) || (c.base != nil && *c.base != *o.base) || len(c.rules) != len(o.rules) {
		return false
	}
	for i := range c.rules {
		if c.rules[i].comment != o.rules[i].comment {
			return false
		}
	}
	return true
}

func newRule(text string, e nft.Expr) rule {
	const digestLen = 8
	sum := sha256.Sum256(e)
	text = text[:min(len(text), nft.MaxComment-digestLen-2)]
	return rule{expr: e, comment: text + " #" + digest(sum[:], digestLen)}
}

// contents is a set that belongs to a rule.
type contents struct {
	spec     nft.SetSpec
	elements []string
}

// compiler turns the backend-neutral model into rules of one family. It is pure: what it needs to know about the rest is
// asked of setType and hasChain.
type compiler struct {
	family   nft.Family
	setType  func(id string) (view.SetType, bool)
	hasChain func(name string, in desired.Layers) bool
	reject   bool                // denied packets are answered, in the filter layer
	logs     desired.Limit       // of Log rules
	layer    desired.Layers      // where the chain is that is being compiled
	sets     map[string]contents // collects the sets that belong to the rules
}

func (c *compiler) chain(d desired.Chain) chain {
	out := chain{rules: make([]rule, 0, len(d.Rules)), idle: !d.Decides()}
	for _, r := range d.Rules {
		missing := c.missing(r)
		if missing != "" && !r.Decides() {
			continue
		}
		if missing != "" {
			// Nothing behind this rule can be judged without it.
			out.rules = append(out.rules, newRule(r.Comment+": "+missing+" is not known", nft.Expr{}.Counter().Verdict(nft.Verdict{Code: nft.Drop})))
			continue
		}
		for _, e := range c.match(r.Criteria()) {
			out.rules = append(out.rules, newRule(r.Comment, c.action(condition(e, r.If), r)))
		}
	}
	return out
}

// missing names a set or chain that the rule needs and that is not there.
func (c *compiler) missing(r desired.Rule) string {
	if r.Do == desired.Jump && !c.hasChain(r.Target, c.layer) {
		return "chain " + r.Target
	}
	m := r.Criteria()
	for _, side := range []view.Match{m.Source, m.Destination} {
		for _, ids := range [][]string{side.Sets, side.NotSets} {
			for _, id := range ids {
				if t, ok := c.setType(id); !ok || t != view.SetNet {
					return "set " + id
				}
			}
		}
		for _, ids := range [][]string{side.IPPortSets, side.NamedPorts, side.NotNamedPorts} {
			for _, id := range ids {
				if t, ok := c.setType(id); !ok || t != view.SetIPPort {
					return "set " + id
				}
			}
		}
	}
	return ""
}

func condition(e nft.Expr, when desired.Condition) nft.Expr {
	switch when {
	case desired.IfUndecided:
		return ifMark(e, desired.MarkAccept|desired.MarkPass, false)
	case desired.IfAllowed:
		return ifMark(e, desired.MarkAccept, true)
	}
	return e
}

func (c *compiler) action(e nft.Expr, r desired.Rule) nft.Expr {
	switch r.Do {
	case desired.Allow:
		return setMark(e.Counter(), desired.MarkAccept).Verdict(nft.Verdict{Code: nft.Return})
	case desired.Pass:
		return setMark(e.Counter(), desired.MarkPass).Verdict(nft.Verdict{Code: nft.Return})
	case desired.Log:
		const longest = 127
		if l := c.logs; l != (desired.Limit{}) {
			e = e.Limit(uint64(l.Rate), l.Per, uint32(l.Burst))
		}
		return e.Log(r.LogPrefix[:min(len(r.LogPrefix), longest-2)] + ": ")
	case desired.Jump:
		return e.Verdict(nft.Verdict{Code: nft.Jump, Chain: layerChain(c.layer, r.Target)})
	case desired.Return:
		return e.Verdict(nft.Verdict{Code: nft.Return})
	case desired.Count:
		return e.Counter().Verdict(nft.Verdict{Code: nft.Return})
	case desired.Reset:
		return clearMark(e)
	}
	return c.deny(e)
}

func (c *compiler) deny(e nft.Expr) nft.Expr {
	if c.reject && c.layer == desired.Filter {
		return e.Counter().Reject()
	}
	return e.Counter().Verdict(nft.Verdict{Code: nft.Drop})
}

// Marks are in the host's byte order.
func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func ifMark(e nft.Expr, bits uint32, set bool) nft.Expr {
	return e.Meta(unix.NFT_META_MARK, nft.Reg).Mask(word(bits), word(0)).Equal(word(0), set)
}

func setMark(e nft.Expr, bits uint32) nft.Expr {
	return e.Meta(unix.NFT_META_MARK, nft.Reg).Mask(word(^bits), word(bits)).SetMeta(unix.NFT_META_MARK)
}

func clearMark(e nft.Expr) nft.Expr {
	return e.Meta(unix.NFT_META_MARK, nft.Reg).Mask(word(^uint32(desired.MarkAccept|desired.MarkPass)), word(0)).SetMeta(unix.NFT_META_MARK)
}
