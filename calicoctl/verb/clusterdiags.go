package verb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/calicoctl/diags"
	"github.com/muslin-net/muslin/calicoctl/table"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/datastore/open"
	"github.com/muslin-net/muslin/internal/kubefollow"
)

func clusterCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Look at the cluster as a whole"}
	cmd.AddCommand(clusterDiags(g))
	return cmd
}

// clusterwide is what an archive of a cluster is made by.
type clusterwide struct {
	*globals
	target
	since       time.Duration
	maxLogs     int
	focus       []string
	restConfig  *rest.Config // nil where Kubernetes is not the datastore
	unreachable error        // why nothing of the datastore can be had
}

func clusterDiags(g *globals) *cobra.Command {
	c := clusterwide{globals: g}
	how := collection{prefix: "calico-diagnostics-", dir: "."}
	cmd := &cobra.Command{
		Use: "diags", Short: "Pack what is to be known of the cluster into an archive", Args: cobra.NoArgs,
		Long: "Pack what is to be known of the cluster into an archive in the current directory: all resources, the use of addresses, what\n" +
			"typha serves, and of each node what felix and bird say through typha (with an operator's certificate). Where Kubernetes is the\n" +
			"datastore, also the state and the logs of our pods.\n" +
			"What looks like a secret is left out. What cannot be had is named, with the reason, in the archive's index.txt.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			items, err := c.items(cmd.Context())
			if err != nil {
				return err
			}
			return how.run(cmd, items)
		},
	}
	f := cmd.Flags()
	c.flags(cmd)
	_ = f.MarkHidden("node")
	f.DurationVar(&c.since, "since", 0, "only logs that are newer than this, such as 30m; 0 takes all")
	f.IntVar(&c.maxLogs, "max-logs", 5, "most pods of each component whose logs are taken")
	f.IntVar(&how.parallel, "max-parallelism", 10, "most things that are collected at a time")
	f.StringSliceVar(&c.focus, "focus-nodes", nil, "nodes whose logs and state are taken before those of others")
	f.BoolVar(&how.keep, "skip-temp-dir-cleanup", false, "leave the temporary directory")
	return cmd
}

// items are all that is collected. Only settings that are wrong are an error.
func (c *clusterwide) items(ctx context.Context) ([]diags.Item, error) {
	if c.since < 0 || c.maxLogs < 0 {
		return nil, fmt.Errorf("flags --since %s and --max-logs %d: neither may be below 0", c.since, c.maxLogs)
	}
	if _, err := c.settings(); err != nil {
		return nil, err
	}
	nodes, pods := c.look(ctx)
	out := []diags.Item{
		{Name: "version.txt", Title: "version of the cluster", Collect: c.own("version")},
		{Name: "ipam/pools.txt", Title: "use of addresses", Collect: c.own("ipam", "show", "--show-blocks")},
		{Name: "ipam/check.txt", Title: "addresses that do not fit", Collect: c.own("ipam", "check")},
		{Name: "typha/views.txt", Title: "views that typha serves", Collect: c.views},
	}
	for _, kind := range api.Kinds() {
		out = append(out, diags.Item{Name: "resources/" + kind.Plural + ".yaml", Title: kind.Plural, Collect: c.resources(kind)})
	}
	for _, node := range nodes {
		of := c.target
		of.node = node
		for _, item := range []diags.Item{
			{Name: "kernel.txt", Title: "what felix wants on " + node + ", and what there is", Collect: of.ask(dump)},
			{Name: "endpoints.yaml", Title: "endpoints of " + node, Collect: of.ask(endpoints)},
			{Name: "bgp.yaml", Title: "BGP of " + node, Collect: of.ask(peers)},
		} {
			item.Name = "nodes/" + node + "/" + item.Name
			out = append(out, item)
		}
	}
	return append(out, c.logs(pods)...), nil
}

// look finds the nodes, and our pods. That there is no datastore is told by each item that needs it.
func (c *clusterwide) look(ctx context.Context) (nodes []string, pods []corev1.Pod) {
	ctx, cancel := context.WithTimeout(ctx, 2*reach)
	defer cancel()
	c.allowMismatch = true
	c.unreachable = c.withPlainDatastore(ctx, func(ctx context.Context, store datastore.Client) error {
		if k, ok := store.(*kubernetes.Client); ok {
			c.restConfig = k.REST()
		}
		list, err := store.List(ctx, "Node", datastore.ListOptions{})
		for _, o := range list.Items {
			nodes = append(nodes, o.GetName())
		}
		return err
	})
	if c.restConfig != nil {
		list, err := c.pods(ctx)
		c.unreachable, pods = errors.Join(c.unreachable, err), list
	}
	slices.SortStableFunc(nodes, c.focusFirst)
	slices.SortStableFunc(pods, func(a, b corev1.Pod) int { return c.focusFirst(a.Spec.NodeName, b.Spec.NodeName) })
	return nodes, pods
}

// focusFirst sorts nodes that somebody wants to see before others.
func (c *clusterwide) focusFirst(a, b string) int {
	rank := func(node string) int {
		if slices.Contains(c.focus, node) {
			return 0
		}
		return 1
	}
	return rank(a) - rank(b)
}

// resources are all objects of a kind. None of them has a secret: what is secret they name.
func (c *clusterwide) resources(kind api.Kind) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		return c.withPlainDatastore(ctx, func(ctx context.Context, store datastore.Client) error {
			list, err := store.List(ctx, kind.Name, datastore.ListOptions{})
			if err != nil {
				return err
			}
			out := bufio.NewWriter(w)
			fmt.Fprintf(out, "# %d, revision %s\n", len(list.Items), list.Revision)
			for _, o := range list.Items {
				text, err := yaml.Marshal(o)
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "---\n%s", text)
			}
			return out.Flush()
		})
	}
}

func peers(ctx context.Context, l live, w io.Writer) error {
	status, err := l.Peers(ctx, "")
	return errors.Join(show(w, "yaml", statusDocument(status, err, time.Now()), nil), err)
}

// components are the values of the label k8s-app of our pods.
var components = []string{"calico-node", "calico-typha", "calico-kube-controllers"}

func (c *clusterwide) core() (rest.Interface, error) {
	return kubefollow.Client(c.restConfig, "calicoctl", corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{}, &corev1.PodLogOptions{})
}

func (c *clusterwide) pods(ctx context.Context) ([]corev1.Pod, error) {
	core, err := c.core()
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	err = core.Get().Resource("pods").Param("labelSelector", "k8s-app in ("+strings.Join(components, ",")+")").Do(ctx).Into(&list)
	if err != nil {
		return nil, fmt.Errorf("pods: %w", err)
	}
	return list.Items, nil
}

// logs are the state of our pods, and the logs of some of each component.
func (c *clusterwide) logs(pods []corev1.Pod) []diags.Item {
	out := []diags.Item{{Name: "pods/pods.txt", Title: "pods", Collect: func(_ context.Context, w io.Writer) error {
		switch {
		case c.unreachable != nil:
			return c.unreachable
		case c.restConfig == nil:
			return fmt.Errorf("the datastore is not %s, so where pods are is not known", open.TypeKubernetes)
		}
		return printPods(w, pods)
	}}}
	taken := map[string]int{}
	for _, pod := range pods {
		component := pod.Labels["k8s-app"]
		if taken[component]++; taken[component] > c.maxLogs {
			continue
		}
		for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, previous := range []bool{false, true} {
				if previous && restarts(pod, container.Name) == 0 {
					continue
				}
				name := pod.Name + "/" + container.Name + map[bool]string{true: ".previous"}[previous]
				out = append(out, diags.Item{Name: "logs/" + name + ".log", Title: "log of " + name, Collect: c.log(pod.Namespace, pod.Name, container.Name, previous)})
			}
		}
	}
	return out
}

func restarts(pod corev1.Pod, container string) (n int32) {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if s.Name == container {
			n = s.RestartCount
		}
	}
	return n
}

func (c *clusterwide) log(namespace, pod, container string, previous bool) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		core, err := c.core()
		if err != nil {
			return err
		}
		request := core.Get().Namespace(namespace).Resource("pods").Name(pod).SubResource("log").
			Param("container", container).Param("previous", strconv.FormatBool(previous)).Param("timestamps", "true")
		if c.since > 0 {
			request = request.Param("sinceTime", metav1.NewTime(time.Now().Add(-c.since)).UTC().Format(time.RFC3339))
		}
		log, err := request.Stream(ctx)
		if err != nil {
			return err
		}
		defer log.Close()
		_, err = io.Copy(w, log)
		return err
	}
}

// printPods tells how our pods are.
func printPods(w io.Writer, pods []corev1.Pod) error {
	rows := [][]string{{"NAMESPACE", "POD", "NODE", "PHASE", "CONTAINER", "READY", "RESTARTS", "STATE"}}
	for _, pod := range pods {
		for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			state := "running"
			switch {
			case s.State.Waiting != nil:
				state = "waiting: " + s.State.Waiting.Reason + " " + s.State.Waiting.Message
			case s.State.Terminated != nil:
				state = fmt.Sprintf("ended with %d: %s %s", s.State.Terminated.ExitCode, s.State.Terminated.Reason, s.State.Terminated.Message)
			}
			if last := s.LastTerminationState.Terminated; last != nil {
				state += fmt.Sprintf("; before, ended with %d: %s %s", last.ExitCode, last.Reason, last.Message)
			}
			rows = append(rows, []string{
				pod.Namespace, pod.Name, dash(pod.Spec.NodeName), string(pod.Status.Phase), s.Name, strconv.FormatBool(s.Ready), strconv.Itoa(int(s.RestartCount)), state,
			})
		}
	}
	return table.Rows(w, rows)
}
