package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"golang.org/x/sys/unix"
)

// For the pictures in the documentation, of a page that the lab saved: see CONTRIBUTING.md.
var (
	savedPage = flag.String("page", "", "status page to make pictures of, an absolute path")
	pictures  = flag.String("pictures", "../docs", "folder for its pictures")
)

// browser is a tab of a Chromium that a test controls. It runs in the network namespace of the
// test, from which nothing else can be reached.
type browser struct {
	t   *testing.T
	ctx context.Context // of the tab

	mu         sync.Mutex
	complaints []string // on the console
}

// openBrowser starts a browser that lasts as long as the test.
func (n *netns) openBrowser() *browser {
	n.t.Helper()
	profile := n.t.TempDir()
	options := append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.UserDataDir(profile), chromedp.Env("HOME="+profile),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-component-update", true),
		chromedp.ModifyCmdFunc(n.inNamespaces),
	)
	// The pipe to the browser is not a socket, so its ends may be in different network
	// namespaces.
	process, end := chromedp.NewExecAllocator(context.Background(), options...)
	n.t.Cleanup(end)
	tab, closeTab := chromedp.NewContext(process)
	n.t.Cleanup(closeTab)
	b := &browser{t: n.t, ctx: tab}
	if err := chromedp.Listen(tab, b.note); err != nil {
		n.t.Fatal(err)
	}
	return b
}

// inNamespaces makes a command run in the network namespace of the test, which is that of the
// calling thread, and in a PID namespace, so that no part of it outlives the test. chromedp
// starts it on another thread.
func (n *netns) inNamespaces(cmd *exec.Cmd) {
	network := fmt.Sprintf("--net=/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	cmd.Args = append([]string{
		"nsenter", network, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", cmd.Path,
	}, cmd.Args[1:]...)
	var err error
	if cmd.Path, err = exec.LookPath(cmd.Args[0]); err != nil {
		n.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// note records what the browser writes to the console.
func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded: // of the browser itself
		b.complaints = append(b.complaints, fmt.Sprintf("%s: %s", e.Entry.Level, e.Entry.Text))
	case *cdpruntime.EventExceptionThrown:
		b.complaints = append(b.complaints, e.ExceptionDetails.Text)
	case *cdpruntime.EventConsoleAPICalled:
		b.complaints = append(b.complaints, string(e.Type))
	}
}

// run performs an action in the browser and returns its result.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatal("browser: ", err)
	}
	return v
}

// visit opens a page.
func (b *browser) visit(url string) {
	b.t.Helper()
	run(b, chromedp.Navigate(url))
}

// ask evaluates an expression in the page. The properties of an object have the names of T's
// fields.
func ask[T any](b *browser, expression string) T {
	b.t.Helper()
	return run(b, chromedp.Evaluate[T]("("+expression+")"))
}

// screen sets the size of the window and the preferred color scheme, light or dark.
func (b *browser) screen(width, height int, scheme string) {
	b.t.Helper()
	var options []chromedp.EmulateViewportOption
	if width < 600 {
		options = append(options, chromedp.EmulateMobile)
	}
	run(b, chromedp.Steps(
		chromedp.EmulateViewport(int64(width), int64(height), options...),
		chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}),
	))
}

// expectSilence checks that the browser has written nothing to the console.
func (b *browser) expectSilence() {
	b.t.Helper()
	// Everything written before this answer has been recorded.
	ask[int](b, "0")
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		b.t.Errorf("on the console: %s", c)
	}
	b.complaints = nil
}

// startBeside runs the exporter together with processes that end with it, given by name with
// their limits of open descriptors.
func (n *netns) startBeside(processes map[string]int) *line {
	n.t.Helper()
	dir := n.t.TempDir()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		n.t.Fatal(err)
	}
	var script strings.Builder
	var paths []string
	for name, limit := range processes {
		path := filepath.Join(dir, name)
		if err := os.Symlink(sleep, path); err != nil {
			n.t.Fatal(err)
		}
		paths = append(paths, path)
		// The exporter's Wait returns only when they too have closed its standard error.
		fmt.Fprintf(&script, "(ulimit -n %d; exec setpriv --pdeathsig KILL \"$1\" 300) & shift\n", limit)
	}
	// The page must not depend on the network namespaces of other tests.
	e := connect(start(n.t, func(cmd *exec.Cmd) { asHost(cmd, script.String(), paths...) }, "--no-collector.netns"))
	n.until("every process has its name", func() bool {
		p := e.scrape()
		for name := range processes {
			if _, ok := p[fmt.Sprintf("sockpressure_process_open_file_descriptors{process=%q}", name)]; !ok {
				return false
			}
		}
		return true
	})
	return e
}

// pressure fills an accept queue and most of the ephemeral ports, and leaves
// sockets in several states.
func (n *netns) pressure() {
	n.t.Helper()
	at := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
	n.limitPorts()
	n.sysctl("net.ipv4.tcp_max_tw_buckets", "100")
	n.listen(at("127.0.0.1", 443), 40)
	for range 41 { // a queue of 40 takes one more
		n.dial(at("127.0.0.3", 0), at("127.0.0.1", 443))
	}
	n.listen(at("::1", 8080), 128)
	for range 31 {
		n.dial(at("::1", 0), at("::1", 8080))
	}
	n.listen(at("127.0.0.1", 22), 0)
	pairs := n.pairs(n.listen(at("127.0.0.2", 5432), 200), at("127.0.0.4", 0), at("127.0.0.2", 5432), 127)
	for _, p := range pairs[:30] {
		n.close(p.client)
		n.poll(p.server, unix.POLLRDHUP)
		n.close(p.server)
	}
	for _, p := range pairs[30:42] {
		n.shutdown(p.client)
	}
}

// TestBrowser checks the status page of a host under load in a browser, at sizes of desktops and
// phones, in light and dark.
func TestBrowser(t *testing.T) {
	t.Parallel()
	n := enterNetns(t, "chromium", "nsenter", "setpriv")
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		t.Fatal("unshare:", err)
	}
	if err := unix.Sethostname([]byte("node-7")); err != nil {
		t.Fatal("sethostname:", err)
	}
	b := n.openBrowser()
	n.pressure()
	e := n.startBeside(map[string]int{"postgres": 8, "nginx": 16, "sshd": 1024})

	for name, c := range map[string]struct {
		width, height int
		scheme        string
		colour        string
		picture       bool
	}{
		"status-light": {1000, 800, "light", "rgb(255, 255, 255)", true},
		"status-dark":  {1000, 800, "dark", "rgb(20, 24, 28)", true},
		"status-phone": {390, 844, "light", "rgb(255, 255, 255)", true},
		"small phone":  {320, 640, "dark", "rgb(20, 24, 28)", false},
	} {
		b.screen(c.width, c.height, c.scheme)
		b.visit(e.url + "/")
		b.expectBars(e.scrape())
		page := ask[struct {
			Width, Resources, Scripts int
			Title, Colour             string
		}](b, `{
			Width: document.documentElement.scrollWidth,
			Resources: performance.getEntriesByType("resource").length,
			Scripts: document.scripts.length,
			Title: document.title,
			Colour: getComputedStyle(document.body).backgroundColor,
		}`)
		if page.Width > c.width {
			t.Errorf("%s: the page is %v wide on a screen of %d", name, page.Width, c.width)
		}
		if page.Resources != 0 || page.Scripts != 0 {
			t.Errorf("%s: the page loads %v resources and has %v scripts", name, page.Resources, page.Scripts)
		}
		if !strings.HasPrefix(page.Title, "1 critical, 1 warning") || !strings.HasSuffix(page.Title, " · node-7 · sockpressure_exporter") {
			t.Errorf("%s: the title is %q", name, page.Title)
		}
		if page.Colour != c.colour {
			t.Errorf("%s: the page is %s, not %s", name, page.Colour, c.colour)
		}
		b.expectSilence()
		if *savedPage != "" && c.picture {
			b.visit("file://" + *savedPage)
			if err := os.WriteFile(filepath.Join(*pictures, name+".png"), run(b, chromedp.CaptureScreenshot()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.expectRefresh(e)
	b.expectSilence()
}

// expectBars checks that there is one bar for each saturation_ratio, as long as its value, the
// longest first.
func (b *browser) expectBars(p page) {
	b.t.Helper()
	bars := ask[[]struct {
		Name, Class     string
		Percent, Length float64
	}](b, `[...document.querySelectorAll(".limit")].map(limit => ({
		Name: limit.querySelector("h3").textContent,
		Class: limit.className,
		Percent: parseFloat(limit.querySelector(".percent").lastChild.textContent),
		Length: limit.querySelector(".bar rect").getBoundingClientRect().width / limit.querySelector(".bar").getBoundingClientRect().width,
	}))`)
	got := map[string]float64{}
	above := math.Inf(1)
	for _, bar := range bars {
		series := fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", bar.Name)
		got[series] = bar.Length
		// Memory changes between two readings.
		if want := p.value(b.t, series); math.Abs(bar.Length-want) > 0.03 {
			b.t.Errorf("the bar of %s is %v long, and /metrics has %v", bar.Name, bar.Length, want)
		}
		if math.Abs(bar.Percent/100-bar.Length) > 0.001 {
			b.t.Errorf("the bar of %s is %v long, and its label is %v %%", bar.Name, bar.Length, bar.Percent)
		}
		if bar.Length > above+1e-6 {
			b.t.Errorf("%s is below a shorter bar", bar.Name)
		}
		above = bar.Length
		want := map[string]string{"accept_queue": "limit critical", "ephemeral_ports": "limit warning"}[bar.Name]
		if want != "" && bar.Class != want {
			b.t.Errorf("%s is of the class %q, not %q", bar.Name, bar.Class, want)
		}
	}
	if want := p.with("sockpressure_saturation_ratio"); !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		b.t.Errorf("bars for %v, and /metrics has %v", slices.Sorted(maps.Keys(got)), want)
	}
}

// expectRefresh checks that the page reloads and keeps its scroll position, and that ?still turns
// reloading off.
func (b *browser) expectRefresh(e *line) {
	b.t.Helper()
	type view struct{ Read, Top float64 }
	look := func() view { return ask[view](b, `{Read: performance.timeOrigin, Top: scrollY}`) }
	b.visit(e.url + "/")
	run(b, chromedp.Evaluate[*struct{}](`window.scrollTo(0, 500)`))
	first := look()
	second := first
	for end := time.Now().Add(patience); (second.Read == first.Read || second.Top != first.Top) && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		second = look()
	}
	if second.Read == first.Read || first.Top != 500 || second.Top != first.Top {
		b.t.Errorf("the page was loaded at %v and scrolled to %v, then %v and %v", first.Read, first.Top, second.Read, second.Top)
	}
	b.visit(e.url + "/?still")
	if ask[int](b, `document.querySelectorAll("meta[http-equiv=refresh]").length`) != 0 {
		b.t.Error("/?still is refreshed")
	}
}

// TestHostileNames checks that the name of a process is shown literally, even if it contains
// HTML.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	n := enterNetns(t, "chromium", "nsenter", "setpriv")
	b := n.openBrowser()
	for _, name := range []string{"<script>alert()", `"><img src=x>`, "{{1}}&lt;b&amp;"} {
		// With a higher limit than in TestBrowser, which must not find another worst process.
		e := n.startBeside(map[string]int{name: 16})
		b.visit(e.url + "/")
		shown := ask[[]string](b, `[...document.querySelectorAll(".list th bdi")].map(e => e.textContent)`)
		if !slices.Contains(shown, name) {
			t.Errorf("%q is not among %q", name, shown)
		}
		if elements := ask[int](b, `document.querySelectorAll("script, img").length`); elements != 0 {
			t.Errorf("%q became %v elements", name, elements)
		}
	}
	b.expectSilence()
}
