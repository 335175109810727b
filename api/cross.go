package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The rules that span objects. The datastore layer applies them to every write, after Default and Validate. They see
// what is stored when they are asked; two writers at once can each pass, which is why none of them is what safety rests
// on (an overlapping pool, for instance, is also marked as not allocatable by its controller).

// Others lists what is stored of a kind. It may hold the object in question itself.
//
// +kubebuilder:object:generate=false
type Others func(kind string) ([]Object, error)

// CheckCreate tells whether an object can join those that are there. It returns nil, Errors, or the error of others.
func CheckCreate(o Object, others Others) error {
	var c checker
	var err error
	switch o := o.(type) {
	case *IPPool:
		if err = c.poolOverlap(o, others); err == nil {
			err = c.poolBlocks(o, others)
		}
	case *Profile:
		c.defaultAllow(o.Name)
	case *NetworkSet, *GlobalNetworkSet:
		err = c.setLimit(NetsOf(o), nil, others)
	default:
		if tier, ok := TierOf(o); ok {
			err = c.tierExists(tier, others)
		}
	}
	if err != nil {
		return err
	}
	return c.err()
}

// CheckUpdate tells whether updated can replace old: ValidateUpdate, and the rules that span objects. It returns nil,
// Errors, or the error of others.
func CheckUpdate(old, updated Object, others Others) error {
	if err := ValidateUpdate(old, updated); err != nil {
		return err
	}
	var c checker
	var err error
	switch o := updated.(type) {
	case *Profile:
		c.defaultAllow(o.Name)
	case *NetworkSet, *GlobalNetworkSet:
		err = c.setLimit(NetsOf(o), NetsOf(old), others)
	default:
		was, _ := TierOf(old)
		if tier, ok := TierOf(updated); ok && tier != was {
			err = c.tierExists(tier, others)
		}
	}
	if err != nil {
		return err
	}
	return c.err()
}

// ChecksDelete tells whether CheckDelete has anything against objects of a kind.
func ChecksDelete(kind string) bool { return kind == "Tier" || kind == "Profile" }

// CheckDelete tells whether an object can go. It returns nil, Errors, or the error of others.
func CheckDelete(o Object, others Others) error {
	var c checker
	var err error
	switch o := o.(type) {
	case *Tier:
		if IsBuiltinTier(o.Name) {
			c.bad("metadata.name", o.Name, "is a built-in tier, which cannot be deleted", "leave it; a tier without policies has no effect")
			break
		}
		err = c.tierEmpty(o.Name, others)
	case *Profile:
		c.defaultAllow(o.Name)
	}
	if err != nil {
		return err
	}
	return c.err()
}

// poolOverlap refuses a pool whose range touches another's.
func (c *checker) poolOverlap(p *IPPool, others Others) error {
	pools, err := others("IPPool")
	if err != nil {
		return err
	}
	for _, o := range pools {
		if other := o.(*IPPool); other.Name != p.Name && p.Prefix().Overlaps(other.Prefix()) {
			c.bad("spec.cidr", p.Spec.CIDR, fmt.Sprintf("overlaps pool %s, %s", other.Name, other.Spec.CIDR), "choose a range outside it, or delete that pool first")
		}
	}
	return nil
}

// poolBlocks refuses a pool over blocks of another size, which a deleted pool can leave behind while addresses are in
// use.
func (c *checker) poolBlocks(p *IPPool, others Others) error {
	blocks, err := others("IPAMBlock")
	if err != nil {
		return err
	}
	for _, o := range blocks {
		cidr, err := netip.ParsePrefix(o.(*IPAMBlock).Spec.CIDR)
		if err != nil || !p.Prefix().Overlaps(cidr) || cidr.Bits() == p.EffectiveBlockSize() {
			continue
		}
		c.bad("spec.blockSize", p.EffectiveBlockSize(), fmt.Sprintf("differs from block %s, which is still in use inside the pool", cidr), fmt.Sprintf("write blockSize: %d, or wait until the addresses of the block are released", cidr.Bits()))
		return nil
	}
	return nil
}

// TierOf is the tier of a policy; ok is false for other kinds.
func TierOf(o Object) (tier string, ok bool) {
	switch p := o.(type) {
	case *NetworkPolicy:
		tier = p.Spec.Tier
	case *GlobalNetworkPolicy:
		tier = p.Spec.Tier
	case *StagedNetworkPolicy:
		tier = p.Spec.Tier
	case *StagedGlobalNetworkPolicy:
		tier = p.Spec.Tier
	default:
		return "", false
	}
	setDefault(&tier, TierDefault)
	return tier, true
}

// tierExists refuses a policy of a tier that is not there. The built-in ones always are.
func (c *checker) tierExists(name string, others Others) error {
	if IsBuiltinTier(name) {
		return nil
	}
	tiers, err := others("Tier")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(tiers, func(o Object) bool { return o.GetName() == name }) {
		c.bad("spec.tier", name, "does not exist", "create the tier first, or name one that exists")
	}
	return nil
}

// tierEmpty refuses to part with a tier that has policies.
func (c *checker) tierEmpty(name string, others Others) error {
	const shownMost = 3
	var found []string
	for _, kind := range []string{"GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy"} {
		policies, err := others(kind)
		if err != nil {
			return err
		}
		for _, o := range policies {
			if tier, _ := TierOf(o); tier == name {
				found = append(found, KeyOf(o).String())
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	more := ""
	if len(found) > shownMost {
		more = fmt.Sprintf(" and %d more", len(found)-shownMost)
		found = found[:shownMost]
	}
	c.bad("metadata.name", name, "still has policies: "+strings.Join(found, ", ")+more, "delete them, or move them to another tier, first")
	return nil
}

// defaultAllow refuses any change of the built-in profile.
func (c *checker) defaultAllow(name string) {
	if name == ProfileDefaultAllow {
		c.bad("metadata.name", name, "is the built-in profile, which cannot be created, changed or deleted", "choose another name")
	}
}
