package verb

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/open"
	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/ipam/audit"
)

func ipamCheck(g *globals) *cobra.Command {
	var all, problems bool
	var file, kubeconfig string
	cmd := &cobra.Command{
		Use: "check", Short: "Compare what is given out with what is in use, and tell what does not fit", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				facts, err := readFacts(ctx, c)
				if err != nil {
					return err
				}
				if err := g.readServices(ctx, kubeconfig, &facts); err != nil {
					return err
				}
				found := audit.Check(facts)
				printCheck(cmd.OutOrStdout(), found, all, problems || all)
				if !facts.KnowsServices && found.Unjudged > 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "LoadBalancer addresses were not judged; --kubeconfig says where to look for their Services.")
				}
				if file == "" {
					return nil
				}
				info, err := information(ctx, c)
				if err != nil {
					return err
				}
				return writeReport(file, audit.NewReport(g.version, info, facts, found))
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&all, "show-all-ips", false, "print all addresses that are looked at")
	flags.BoolVar(&problems, "show-problem-ips", false, "print the addresses that are lost, or not given out properly")
	flags.StringVarP(&file, "output", "o", "", "file to write the report to, for calicoctl ipam release --from-report")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file of the cluster whose Services have LoadBalancer addresses; not needed where Kubernetes is the datastore")
	return cmd
}

// readFacts reads everything that has a say. The objects that use addresses are read last: what was given out while this
// reads, and is in use already, is found in use.
func readFacts(ctx context.Context, c datastore.Client) (f audit.Facts, err error) {
	for _, read := range []func() error{
		func() error { return readAll(ctx, c, "IPPool", &f.Pools) },
		func() error { return readAll(ctx, c, "IPAMBlock", &f.Blocks) },
		func() error { return readAll(ctx, c, "BlockAffinity", &f.Affinities) },
		func() error { return readAll(ctx, c, "IPAMHandle", &f.Handles) },
		func() error { return readAll(ctx, c, "Node", &f.Nodes) },
		func() error { return readAll(ctx, c, "WorkloadEndpoint", &f.Endpoints) },
	} {
		if err := read(); err != nil {
			return f, err
		}
	}
	return f, nil
}

func readAll[T api.Object](ctx context.Context, c datastore.Client, kind string, into *[]T) error {
	l, err := c.List(ctx, kind, datastore.ListOptions{})
	for _, o := range l.Items {
		*into = append(*into, o.(T))
	}
	return err
}

// readServices reads the Services, if Kubernetes is the datastore or a kubeconfig leads to it.
func (g *globals) readServices(ctx context.Context, kubeconfig string, f *audit.Facts) error {
	config, err := g.kubernetes(kubeconfig)
	if config == nil || err != nil {
		return err
	}
	client, err := kubefollow.Client(config, "calicoctl", corev1.SchemeGroupVersion, &corev1.Service{}, &corev1.ServiceList{})
	if err != nil {
		return err
	}
	var list corev1.ServiceList
	if err := client.Get().Resource("services").Do(ctx).Into(&list); err != nil {
		return fmt.Errorf("listing Services, which have LoadBalancer addresses: %w", err)
	}
	f.KnowsServices = true
	for _, s := range list.Items {
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		service := audit.Service{Namespace: s.Namespace, Name: s.Name}
		for _, i := range s.Status.LoadBalancer.Ingress {
			if a, err := netip.ParseAddr(i.IP); err == nil { // others give names
				service.Addrs = append(service.Addrs, a)
			}
		}
		f.Services = append(f.Services, service)
	}
	return nil
}

// kubernetes is how to reach the cluster of Kubernetes; nil if there is none that calicoctl knows of.
func (g *globals) kubernetes(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		return kubefollow.Config(kubeconfig)
	}
	settings, err := g.settings()
	if err != nil || settings.Type != open.TypeKubernetes {
		return nil, err
	}
	return settings.Kubernetes().RESTConfig()
}

// information is the cluster's ClusterInformation.
func information(ctx context.Context, c datastore.Client) (*api.ClusterInformation, error) {
	o, err := c.Get(ctx, clusterInformation)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, errors.New("the datastore has no ClusterInformation, so that it cannot be told from another one; start typha (or any Calico component) once")
	}
	if err != nil {
		return nil, err
	}
	return o.(*api.ClusterInformation), nil
}

func writeReport(file string, r audit.Report) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644) //nolint:gosec // it holds nothing that is secret
}

// printCheck prints findings in the words that users of Calico know, with what it does not look at in words of our own.
func printCheck(w io.Writer, f audit.Findings, all, problems bool) {
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	list := func(show bool, kinds ...audit.Kind) int {
		found := f.Of(kinds...)
		for _, p := range found {
			if show {
				say("  %s %s", p.Subject, p.Text)
			}
		}
		return len(found)
	}
	say("Checking IPAM for inconsistencies...\n")
	say("Loading all IPAM blocks...\nFound %d IPAM blocks.", len(f.Blocks))
	for _, b := range f.Blocks {
		affinity := "<none>"
		if b.Spec.Affinity != nil {
			affinity = *b.Spec.Affinity
		}
		say(" IPAM block %s affinity=%s:", b.Spec.CIDR, affinity)
		for _, a := range f.Allocations {
			if all && a.Block.String() == b.Spec.CIDR {
				say("  %s allocated; attrs %s", a.Addr, audit.Attributes(a.Allocation))
			}
		}
	}
	say("IPAM blocks record %d allocations.\n", len(f.Allocations))
	say("Loading all IPAM pools...")
	for _, p := range f.Pools {
		say("  %s", p)
	}
	say("Found %d active IP pools.\n", len(f.Pools))
	say("Loading all nodes.\nFound %d node tunnel IPs.\n", f.TunnelAddrs)
	say("Loading all workload endpoints.")
	for _, a := range f.Allocations {
		for _, user := range a.Users {
			if all {
				say("  %s belongs to %s", a.Addr, user)
			}
		}
	}
	say("Found %d workload IPs.", f.EndpointAddrs)
	if f.ServiceAddrs > 0 {
		say("Found %d LoadBalancer IPs of Services.", f.ServiceAddrs)
	}
	say("Workloads and nodes are using %d IPs.\n", len(f.Users))
	printNodes(w, f)
	say("Scanning for IPs that are allocated but not actually in use...")
	say("Found %d IPs that are allocated in IPAM but not actually in use.", list(problems, audit.Leaked))
	say("Scanning for IPs that are in use by a workload or node but not allocated in IPAM...")
	say("Found %d in-use IPs that are not in active IP pools.", list(problems, audit.NotInPool))
	say("Found %d in-use IPs that are in active IP pools but have no corresponding IPAM allocation.", list(problems, audit.NotAllocated))
	say("Found %d in-use IPs that have multiple owners.\n", list(problems, audit.Shared, audit.Twice))
	say("Scanning for IPAM handles with no matching IPs...")
	say("Found %d handles with no matching IPs (and %d handles with matches).", list(problems, audit.OrphanHandle), f.GoodHandles)
	say("Scanning for IPs with missing handle...")
	say("Found %d handles mentioned in blocks with no matching handle resource.", list(problems, audit.MissingHandle))
	say("Found %d handles that count too few addresses.\n", list(problems, audit.HandleTooLow))
	say("Scanning for blocks and affinities that contradict each other...")
	say("Found %d blocks that contradict themselves or their affinity.", list(problems, audit.InvalidBlock, audit.BrokenAffinity))
	say("Check complete; found %d problems.", len(f.Problems))
}

func printNodes(w io.Writer, f audit.Findings) {
	const most = 20
	count := map[string]int{}
	for _, a := range f.Allocations {
		count[a.Node()]++
	}
	var nodes []string
	for n := range count {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(x, y string) int { return cmp.Or(count[y]-count[x], strings.Compare(x, y)) })
	fmt.Fprintf(w, "Looking for top (up to %d) nodes by allocations...\n", most)
	for _, n := range nodes[:min(len(nodes), most)] {
		fmt.Fprintf(w, "  %s has %d allocations\n", cmp.Or(n, "<no node>"), count[n])
	}
	if len(nodes) > 0 {
		fmt.Fprintf(w, "Node with most allocations has %d; median is %d\n", count[nodes[0]], count[nodes[len(nodes)/2]])
	}
	fmt.Fprintln(w)
}
