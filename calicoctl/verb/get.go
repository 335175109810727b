package verb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/calicoctl/table"
	"github.com/muslin-net/muslin/datastore"
)

// builtinAS is the AS number of a cluster that configures none.
const builtinAS = 64512

func get(g *globals) *cobra.Command {
	var in input
	var output string
	var all, export bool
	cmd := &cobra.Command{
		Use: "get (KIND [NAME...] | -f FILE)", Short: "Show resources",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && len(in.files) == 0 {
				return errors.New("name a kind; the kinds are " + userKinds())
			}
			return g.withDatastore(cmd.Context(), func(ctx context.Context, c datastore.Client) error {
				found, err := g.find(ctx, c, cmd, in, args, all)
				if err != nil {
					return err
				}
				if export {
					found.strip()
				}
				return found.print(ctx, c, cmd.OutOrStdout(), output, table.Options{Namespaces: all || g.namespace != ""})
			})
		},
	}
	in.flags(cmd)
	flags := cmd.Flags()
	flags.StringVarP(&output, "output", "o", "ps", "ps, wide, yaml, json, custom-columns=…, go-template=… or go-template-file=…")
	flags.BoolVarP(&all, "all-namespaces", "A", false, "in every namespace")
	flags.BoolVarP(&all, "all", "a", false, "the same as -A")
	flags.BoolVar(&export, "export", false, "leave out what only this cluster knows, for named resources")
	namespaceFlag(cmd, g)
	return cmd
}

// listing is what was found.
type listing struct {
	kind    api.Kind
	objects []api.Object
	named   bool // resources were asked for by name
	version string
}

func (g *globals) find(ctx context.Context, c datastore.Client, cmd *cobra.Command, in input, args []string, all bool) (listing, error) {
	if len(in.files) > 0 || len(args) > 1 {
		keys, err := g.keys(cmd, in, args)
		if err != nil {
			return listing{}, err
		}
		out := listing{named: true}
		for _, k := range keys {
			o, err := c.Get(ctx, k)
			if err != nil {
				return listing{}, fmt.Errorf("failed to get resources: [%w]", err)
			}
			out.kind, out.objects = api.KindOf(o), append(out.objects, o)
		}
		return out, nil
	}
	kind, err := userKind(args[0])
	if err != nil {
		return listing{}, err
	}
	opts := datastore.ListOptions{}
	if kind.Namespaced && !all {
		opts.Namespace = or(g.namespace, defaultNamespace)
	}
	list, err := c.List(ctx, kind.Name, opts)
	if err != nil {
		return listing{}, fmt.Errorf("failed to get resources: [%w]", err)
	}
	return listing{kind: kind, objects: list.Items, version: list.Revision}, nil
}

// strip removes what only this cluster knows.
func (l listing) strip() {
	if !l.named {
		return
	}
	for _, o := range l.objects {
		o.SetUID("")
		o.SetResourceVersion("")
		o.SetGeneration(0)
		o.SetManagedFields(nil)
		o.SetCreationTimestamp(metav1.Time{})
	}
}

func (l listing) print(ctx context.Context, c datastore.Client, w io.Writer, output string, opts table.Options) error {
	how, value, _ := strings.Cut(output, "=")
	switch how {
	case "ps", "", "wide":
		opts.Wide = how == "wide"
		if opts.Wide {
			as, err := defaultAS(ctx, c)
			if err != nil {
				return err
			}
			opts.DefaultAS = as
		}
		for _, part := range l.byKind() {
			if err := table.Print(w, part.kind, part.objects, opts); err != nil {
				return err
			}
		}
		return nil
	}
	doc, err := l.document()
	if err != nil {
		return err
	}
	switch how {
	case "json":
		body, err := json.MarshalIndent(doc, "", "  ")
		fmt.Fprintln(w, string(body))
		return err
	case "yaml":
		body, err := yaml.Marshal(doc)
		fmt.Fprint(w, string(body))
		return err
	case "custom-columns":
		return l.customColumns(w, value)
	case "go-template-file":
		body, err := os.ReadFile(value)
		if err != nil {
			return fmt.Errorf("flag --output: %w", err)
		}
		return execute(w, string(body), doc)
	case "go-template":
		return execute(w, value, doc)
	}
	return fmt.Errorf("flag --output: unrecognized output format '%s'; use ps, wide, yaml, json, custom-columns=…, go-template=… or go-template-file=…", output)
}

// byKind takes a listing of several kinds, as a file may name, apart; the kinds keep their order.
func (l listing) byKind() []listing {
	if len(l.objects) == 0 {
		return []listing{l}
	}
	var out []listing
	for _, o := range l.objects {
		kind := api.KindOf(o)
		at := slices.IndexFunc(out, func(part listing) bool { return part.kind.Name == kind.Name })
		if at < 0 {
			at = len(out)
			out = append(out, listing{kind: kind})
		}
		out[at].objects = append(out[at].objects, o)
	}
	return out
}

// document is one object as it is, several as a list.
func (l listing) document() (any, error) {
	items := make([]any, len(l.objects))
	for i, o := range l.objects {
		body, err := api.Encode(o)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(body, &items[i]); err != nil {
			return nil, err
		}
	}
	if l.named && len(items) == 1 {
		return items[0], nil
	}
	kind := l.kind.Name + "List"
	if len(l.byKind()) > 1 {
		kind = "List"
	}
	return map[string]any{
		"apiVersion": api.GroupVersion, "kind": kind,
		"metadata": map[string]any{"resourceVersion": l.version}, "items": items,
	}, nil
}

// customColumns prints columns that the user defines: TITLE:PATH or just a path, separated by commas.
func (l listing) customColumns(w io.Writer, spec string) error {
	var titles []string
	var paths []*jsonpath.JSONPath
	for part := range strings.SplitSeq(spec, ",") {
		title, path, ok := strings.Cut(part, ":")
		if !ok {
			title, path = strings.ToUpper(part), "."+strings.ToLower(part)
			if strings.EqualFold(part, "name") || strings.EqualFold(part, "namespace") {
				path = ".metadata" + path
			}
		}
		p := jsonpath.New(title).AllowMissingKeys(true)
		if err := p.Parse("{" + path + "}"); err != nil {
			return fmt.Errorf("flag --output: column %q: %w", part, err)
		}
		titles, paths = append(titles, title), append(paths, p)
	}
	rows := [][]string{titles}
	for _, o := range l.objects {
		doc, err := (listing{objects: []api.Object{o}, named: true}).document()
		if err != nil {
			return err
		}
		cells := make([]string, len(paths))
		for i, p := range paths {
			var b strings.Builder
			if err := p.Execute(&b, doc); err != nil {
				return fmt.Errorf("column %s: %w", titles[i], err)
			}
			cells[i] = b.String()
		}
		rows = append(rows, cells)
	}
	return table.Rows(w, rows)
}

func execute(w io.Writer, text string, doc any) error {
	t, err := template.New("output").Parse(text)
	if err != nil {
		return fmt.Errorf("flag --output: %w", err)
	}
	return t.Execute(w, doc)
}

// defaultAS is the AS number that nodes inherit.
func defaultAS(ctx context.Context, c datastore.Client) (api.ASNumber, error) {
	o, err := c.Get(ctx, api.Key{Kind: "BGPConfiguration", Name: "default"})
	if errors.Is(err, datastore.ErrNotFound) {
		return builtinAS, nil
	}
	if err != nil {
		return 0, err
	}
	if as := o.(*api.BGPConfiguration).Spec.ASNumber; as != nil {
		return *as, nil
	}
	return builtinAS, nil
}
