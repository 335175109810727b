package nftables

import (
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
	"github.com/muslin-net/muslin/felix/desired"
)

// sets are the sets of all families, as the model writes them.
type sets []*family

// Make begins an empty set.
func (s sets) Make(id string, kind view.SetType) {
	for _, f := range s {
		name := kernelSet(f.Family, id)
		if _, there := f.members[id]; there { // of another type
			f.dropSet(name)
		}
		e := f.wantSet(name, specOf(f.Family, kind))
		f.members[id] = ipset.New(kind, f.version(), func(k ipset.Element, in bool) {
			if in {
				e.SetDesired(string(k), nft.Verdict{})
				return
			}
			e.DeleteDesired(string(k))
		})
	}
}

// Replace makes members the whole set.
func (s sets) Replace(id string, members []view.Member) {
	for _, f := range s {
		f.members[id].Replace(members)
	}
}

// Change changes members.
func (s sets) Change(id string, d desired.SetDelta) {
	for _, f := range s {
		for _, m := range d.Removed {
			f.members[id].Remove(m)
		}
		for _, m := range d.Added {
			f.members[id].Add(m)
		}
	}
}

// Drop makes a set undesired.
func (s sets) Drop(id string) {
	for _, f := range s {
		delete(f.members, id)
		f.dropSet(kernelSet(f.Family, id))
	}
}

func specOf(f nft.Family, t view.SetType) nft.SetSpec {
	if t == view.SetIPPort {
		return nft.SetSpec{Key: f.AddressProtoPort()}
	}
	return nft.SetSpec{Key: f.Address(), Interval: true}
}
