package verb

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// warnOfLimit says that the sets of networks with a label of one that was written have together more networks than nodes with
// iptables program into one set: rules that select that label would drop. It is no reason to refuse the set, as rules may select
// less; one that alone is too large is refused by the datastore layer.
func warnOfLimit(ctx context.Context, c datastore.Client, o api.Object, out io.Writer) error {
	if len(api.NetsOf(o)) == 0 || len(o.GetLabels()) == 0 {
		return nil
	}
	var all [][]api.Object
	for _, kind := range []string{"FelixConfiguration", "NetworkSet", "GlobalNetworkSet"} {
		list, err := c.List(ctx, kind, datastore.ListOptions{})
		if err != nil {
			return err
		}
		all = append(all, list.Items)
	}
	limit := api.SetLimitOf(all[0])
	for _, key := range slices.Sorted(maps.Keys(o.GetLabels())) {
		value := o.GetLabels()[key]
		var nets []string
		for _, set := range slices.Concat(all[1:]...) {
			if v, has := set.GetLabels()[key]; has && v == value {
				nets = append(nets, api.NetsOf(set)...)
			}
		}
		if family, n := limit.Exceeded(nets); n > 0 {
			fmt.Fprintf(out, "Warning: %s: sets with label %s=%s have together %d networks of %s, and %s: on nodes with iptables, rules that select them all drop; raise maxIpsetSize, or give them other labels\n",
				api.KeyOf(o), key, value, n, family, limit)
		}
	}
	return nil
}
