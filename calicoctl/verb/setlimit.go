package verb

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// warnOfLimit says that a set of networks has more of them than nodes with iptables program into one set: rules that select it
// would drop. It is no reason to refuse it, as nftables has no such limit, and rules may select less.
func warnOfLimit(ctx context.Context, c datastore.Client, o api.Object, out io.Writer) error {
	var nets []string
	switch s := o.(type) {
	case *api.NetworkSet:
		nets = s.Spec.Nets
	case *api.GlobalNetworkSet:
		nets = s.Spec.Nets
	}
	if len(nets) == 0 {
		return nil
	}
	list, err := c.List(ctx, "FelixConfiguration", datastore.ListOptions{})
	if err != nil {
		return err
	}
	limit, of := *api.EffectiveFelix().MaxIpsetSize, "by default"
	for _, o := range list.Items {
		if f, is := o.(*api.FelixConfiguration); is && f.Spec.MaxIpsetSize != nil && (of == "by default" && f.Name == "default" || *f.Spec.MaxIpsetSize < limit) {
			limit, of = *f.Spec.MaxIpsetSize, "of FelixConfiguration("+f.Name+")"
		}
	}
	count := map[bool]int{}
	for _, n := range nets {
		count[strings.Contains(n, ":")]++
	}
	for _, six := range []bool{false, true} {
		if n := count[six]; n > limit {
			fmt.Fprintf(out, "Warning: %s: spec.nets has %d networks of %s, and maxIpsetSize %s is %d: on nodes with iptables, rules that select it drop; raise maxIpsetSize, or split the set\n",
				api.KeyOf(o), n, map[bool]string{false: "IPv4", true: "IPv6"}[six], of, limit)
		}
	}
	return nil
}
