package main

import (
	"errors"

	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/felix/store"
	"github.com/muslin-net/muslin/felix/uplink"
)

// settle takes up what an earlier felix left: endpoints whose interface is gone (a reboot, a pod killed meanwhile, a crash
// within ADD) and endpoints on their way out (a crash within DEL) are forgotten and their addresses freed; the others are
// returned.
func settle(found map[string]state.Endpoint, records *store.Dir[state.Endpoint], links *link.Driver, releases *uplink.Releases) ([]state.Endpoint, error) {
	var stay []state.Endpoint
	var errs []error
	for name, e := range found {
		there, err := links.Exists(e.Interface)
		switch {
		case err != nil:
			errs = append(errs, err)
		case there && !e.Leaving:
			stay = append(stay, e)
		default:
			errs = append(errs, links.Unwire(e.Interface), releases.Add(e.Handle()), records.Delete(name))
		}
	}
	return stay, errors.Join(errs...)
}
