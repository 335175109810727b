package block

import "net/netip"

// Reassign gives an address from the handle that has it to another owner. It is never free in between, and does not cool
// down. It fails with a *ConflictError if the address is not under that handle.
func (b Block) Reassign(a netip.Addr, from string, to Owner) error {
	has, ok := b.Lookup(a)
	if !ok || has.Cooling() || has.Handle != CleanHandle(from) {
		return &ConflictError{Asked: Release{Addr: a, Handle: from}, Has: has}
	}
	o, _ := b.ordinal(a)
	b.assign(o, to)
	b.compact()
	return nil
}
