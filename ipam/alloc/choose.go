package alloc

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// choice is which pools serve a request.
type choice struct {
	pools  []pool       // in the order to try them
	passed []passedOver // of the same family
}

// passedOver is a pool that does not serve a request.
type passedOver struct {
	pool
	why string
}

// reasons say why pools were passed over, on one line; empty if none was.
func (c choice) reasons() string {
	texts := make([]string, len(c.passed))
	for i, p := range c.passed {
		texts[i] = fmt.Sprintf("%s (%s): %s", p.Name, p.Spec.CIDR, p.why)
	}
	return strings.Join(texts, "; ")
}

// pass keeps those pools that why has nothing against.
func (c *choice) pass(why func(pool) string) {
	c.pools = slices.DeleteFunc(c.pools, func(p pool) bool {
		reason := why(p)
		if reason != "" {
			c.passed = append(c.passed, passedOver{p, reason})
		}
		return reason != ""
	})
}

// none is the error of a choice that came to nothing, if it has.
func (c choice) none(format string, args ...any) error {
	if len(c.pools) > 0 {
		return nil
	}
	err := fmt.Errorf("%w%s", ErrNoPool, fmt.Sprintf(format, args...))
	if why := c.reasons(); why != "" {
		err = fmt.Errorf("%w; passed over: %s", err, why)
	}
	return err
}

// choose picks the pools for a request: those it names, in its order and whatever their selectors and mode say, else the
// automatic ones that select the node and the namespace. All must be enabled, allow the use, and not be refused. The error
// says why each of the others was passed over.
func choose(all []pool, r Request, node map[string]string) (choice, error) {
	c := choice{pools: slices.DeleteFunc(slices.Clone(all), func(p pool) bool { return family(p.cidr.Addr()) != r.Family })}
	c.pass(pool.closed)
	if err := c.none(": there is no enabled IPv%d pool; create or enable one with calicoctl", r.Family); err != nil {
		return c, err
	}
	if len(r.Pools) > 0 {
		named, err := c.named(r)
		if err != nil {
			return c, err
		}
		c = choice{pools: named} // the others were not asked for
	} else {
		c.pass(func(p pool) string { return p.declines(node, r.NamespaceLabels) })
		if err := c.none(": no configured Calico pools for node %s", r.Node); err != nil {
			return c, err
		}
	}
	c.pass(func(p pool) string {
		if p.allows(r.Use) {
			return ""
		}
		return fmt.Sprintf("its allowedUses are %v", p.uses())
	})
	if err := c.none(", no pools match the required use (%s)", r.Use); err != nil {
		return c, err
	}
	var refused error
	c.pass(func(p pool) string {
		err := r.refuses(p)
		if err == nil {
			return ""
		}
		refused = err
		return err.Error()
	})
	if len(c.pools) == 0 {
		return c, fmt.Errorf("%w: %w", ErrNoPool, refused)
	}
	return c, nil
}

// declines says why a pool does not serve a node and a namespace that do not name it.
func (p pool) declines(node, namespace map[string]string) string {
	switch {
	case !p.automatic():
		return "its assignmentMode is Manual: it serves only who names it"
	case !p.selectsNode(node):
		return fmt.Sprintf("its nodeSelector %s does not match the node", p.nodes)
	case p.namespaces != nil && !p.namespaces.Matches(namespace):
		return fmt.Sprintf("its namespaceSelector %s does not match the namespace", p.namespaces)
	}
	return ""
}

// refuses says why the caller does not want a pool to be used; nil if it does.
func (r Request) refuses(p pool) error {
	if r.Refuse == nil {
		return nil
	}
	return r.Refuse(p.IPPool)
}

// named finds the pools that a request names or gives by CIDR.
func (c choice) named(r Request) ([]pool, error) {
	out := make([]pool, 0, len(r.Pools))
	for _, name := range r.Pools {
		cidr, err := netip.ParsePrefix(name)
		is := func(p pool) bool { return p.Name == name || (err == nil && p.cidr == cidr.Masked()) }
		if i := slices.IndexFunc(c.pools, is); i >= 0 {
			out = append(out, c.pools[i])
			continue
		}
		if i := slices.IndexFunc(c.passed, func(p passedOver) bool { return is(p.pool) }); i >= 0 {
			return nil, fmt.Errorf("%w: the given pool (%s) does not exist, or is not enabled: %s", ErrNoPool, name, c.passed[i].why)
		}
		if err == nil && cidr.Addr().Is4() != (r.Family == 4) {
			return nil, fmt.Errorf("%w: pool %s was given for IPv%d addresses, but is of the other family", ErrNoPool, name, r.Family)
		}
		return nil, fmt.Errorf("%w: the given pool (%s) does not exist, or is not enabled; the IPv%d pools are %s", ErrNoPool, name, r.Family, c.names())
	}
	return out, nil
}

// names lists the pools there are.
func (c choice) names() string {
	var out []string
	for _, p := range c.pools {
		out = append(out, p.Name)
	}
	for _, p := range c.passed {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// uses are what the pool's addresses may be used for.
func (p pool) uses() []api.IPPoolUse {
	if len(p.Spec.AllowedUses) == 0 {
		return []api.IPPoolUse{api.UseWorkload, api.UseTunnel}
	}
	return p.Spec.AllowedUses
}

func (p pool) allows(use api.IPPoolUse) bool { return slices.Contains(p.uses(), use) }
