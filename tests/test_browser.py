"The built pages in a real browser: no errors, no dead links, tables that sort, contrast in both themes"
import functools,http.server,json,re,shutil,threading
from pathlib import Path
from urllib.parse import unquote,urldefrag
import pytest
from mils.site import build_site

webdriver = pytest.importorskip('selenium.webdriver')
from selenium.webdriver.support.ui import WebDriverWait
def installed(*names): return next(filter(None, map(shutil.which, names)), None)
browser,driver = installed('chromium','google-chrome','chromium-browser'),installed('chromedriver')
pytestmark = [pytest.mark.skipif(not (browser and driver), reason='no Chromium with its driver on this machine'),
              pytest.mark.xdist_group('browser')]          # one worker builds the site and starts the browser
repo = Path(__file__).resolve().parent.parent

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Address of the site, built from stored outputs, and its folder"
    out = tmp_path_factory.mktemp('site')/'pages'
    build_site(out, execute=False, root=repo)
    with http.server.ThreadingHTTPServer(('127.0.0.1',0), functools.partial(Quiet, directory=str(out))) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{s.server_port}',out
        s.shutdown()

@pytest.fixture(scope='module')
def chrome():
    o = webdriver.ChromeOptions()
    o.binary_location = browser
    for a in ('--headless=new','--no-sandbox','--disable-gpu','--disable-dev-shm-usage','--window-size=1200,900'): o.add_argument(a)
    o.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    d = webdriver.Chrome(options=o, service=webdriver.ChromeService(driver))
    yield d
    d.quit()

def pages(out): return sorted(p.relative_to(out).as_posix() for p in out.rglob('*.html'))

def test_every_page_loads_without_an_error(site, chrome):
    at,out = site
    for p in pages(out):
        chrome.get(f'{at}/{p}')
        bad = [e['message'] for e in chrome.get_log('browser') if e['level']=='SEVERE']
        assert not bad, (p,bad)
        assert chrome.find_element('tag name','h1').text.strip()
        broken = chrome.execute_script("return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0,80))")
        assert not broken, (p,broken)
        assert not chrome.execute_script("return [...document.images].filter(i => !i.alt).length"), f'{p}: a figure without a text'

def test_internal_links_lead_somewhere(site, chrome):
    at,out = site
    ids,links = {},{}
    for p in pages(out):
        chrome.get(f'{at}/{p}')
        ids[p] = set(chrome.execute_script("return [...document.querySelectorAll('[id],a[name]')].map(e => e.id || e.name)"))
        links[p] = chrome.execute_script("return [...document.querySelectorAll('a[href]')].map(a => a.href)")
    dead = []
    for p,hrefs in links.items():
        for h in hrefs:
            if not h.startswith(at) or p=='site.html': continue          # which shows a part of a made-up page
            path,frag = urldefrag(h[len(at):].lstrip('/'))
            path = unquote(path) or 'index.html'
            if path.endswith('/'): path += 'index.html'
            if not (out/path).exists() or frag and path in ids and unquote(frag) not in ids[path]: dead.append((p,h[len(at):]))
    assert not dead

def test_a_table_sorts(site, chrome):
    at,_ = site
    chrome.get(f'{at}/report/task-a.html')
    table = "const t = document.querySelector('#tbl-arms table');"
    column = lambda: [float(v) for v in chrome.execute_script(table+"return [...t.tBodies[0].rows].map(r => r.cells[1].textContent)")]
    click = lambda: chrome.execute_script(table+"[...t.tHead.rows].map(r => r.cells[1]).find(c => c.hasAttribute('aria-sort')).click()")
    before = column()
    click(); up = column()
    click(); down = column()
    assert up==sorted(before) and down==up[::-1]!=up

def test_search_finds_a_section(site, chrome):
    at,_ = site
    for start in ('index.html','report/task-a.html'):
        chrome.get(f'{at}/{start}')
        chrome.find_element('id','search').send_keys('own retention')
        link = WebDriverWait(chrome, 10).until(lambda d: d.find_elements('css selector','#found a'))[0]
        assert link.get_attribute('href')==f'{at}/report/task-a.html#what-is-kept-and-of-what'
        chrome.find_element('id','search').send_keys(' zebra')
        WebDriverWait(chrome, 10).until(lambda d: 'nothing found' in d.find_element('id','found').text)

def test_source_and_colab(site, chrome):
    at,_ = site
    chrome.get(f'{at}/channels.html')
    links = [a.get_attribute('href') for a in chrome.find_elements('css selector','.toc-actions a')]
    assert links==[f'https://{o}/mils-lab/mils/blob/main/nbs/02d_channels.ipynb' for o in ('github.com','colab.research.google.com/github')]

CONTRAST = '''
const parse = c => {
  const m = c.match(/[\\d.]+/g).map(Number), scale = c.startsWith('color(srgb') ? 255 : 1
  return [m[0]*scale, m[1]*scale, m[2]*scale, m[3] ?? 1] }
const linear = v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4
const lum = ([r,g,b]) => .2126*linear(r)+.7152*linear(g)+.0722*linear(b)
const over = (a,b) => [0,1,2].map(i => a[i]*a[3]+b[i]*(1-a[3])).concat(1)
const ground = e => {
  const stack = [], dark = getComputedStyle(document.documentElement).colorScheme == 'dark'
  for (; e; e = e.parentElement) stack.push(parse(getComputedStyle(e).backgroundColor))
  return stack.reverse().reduce((b,a) => over(a,b), dark ? [18,18,18,1] : [255,255,255,1]) }
const bad = []
for (const e of document.querySelectorAll('body *')) {
  const says = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())
  if (!says || !e.offsetParent || ['SCRIPT','STYLE'].includes(e.tagName)) continue
  const s = getComputedStyle(e), b = ground(e), f = over(parse(s.color), b), [x,y] = [lum(f),lum(b)].sort((p,q) => q-p)
  const need = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.6 && s.fontWeight >= 600) ? 3 : 4.5
  if ((x+.05)/(y+.05) < need) bad.push([e.tagName, e.className, e.textContent.trim().slice(0,30), ((x+.05)/(y+.05)).toFixed(2)])
}
return bad.slice(0,8)'''

DARK = "const m = getComputedStyle(document.body).color.match(/[\\d.]+/g).map(Number); return m[0]+m[1]+m[2] > 380"

@pytest.mark.parametrize('theme', ['light','dark'])
def test_text_stands_out(site, chrome, theme):
    "Contrast of at least 4.5, or 3 for large text (WCAG 2.2, level AA)"
    at,_ = site
    report = [f'report/{n}.html' for n in ('index','task-a','task-b','statistics','audit')]
    for p in ('index.html', *report, 'core.html', 'channels.html'):
        chrome.get(f'{at}/{p}')
        for _ in range(2):
            dark = chrome.execute_script(DARK)
            if dark==(theme=='dark'): break
            chrome.find_element('id','theme').click()
        assert dark==(theme=='dark'), p
        assert not (bad := chrome.execute_script(CONTRAST)), (p,theme,bad)

def test_live_page(site, chrome):
    "The network with a mask and the folded one agree in the browser, for every channel set"
    at,out = site
    if not (out/'report'/'live'/'ort').exists(): pytest.skip('onnxruntime-web could not be fetched')
    about = json.loads((out/'report'/'live'/'live.json').read_text())
    chrome.get(f'{at}/report/live.html')
    state = lambda: chrome.execute_script("return document.getElementById('live').dataset.state")
    wait = lambda s: WebDriverWait(chrome, 60).until(lambda d: state()==s, f'no prediction for {s}')
    wait('RGB')
    said = lambda: chrome.find_element('css selector','#live [role=status]').text
    middle = "c => [...c.getContext('2d').getImageData(16,16,1,1).data]"
    shown = lambda: chrome.execute_script(f"return [...document.querySelectorAll('#live canvas')].map({middle})")
    boxes = dict(zip('RGB', chrome.find_elements('css selector','#live input')))
    right = {}
    for s in ('RGB','RG','R','RB','B','GB','G'):
        for c in sorted('RGB', key=lambda c: c not in s): boxes[c].is_selected()==(c in s) or boxes[c].click()
        wait(s)
        assert float(re.search(r'folded network ([\d.e+-]+)', said())[1])<1e-4
        right[s] = int(re.search(r'(\d+) of', said())[1])
        assert all(p[k]==0 for p in shown() for k,c in enumerate('RGB') if c not in s)
    assert boxes['G'].is_selected() and not boxes['G'].is_enabled()                  # one channel always stays on
    assert right['RGB']>.7*len(about['pictures']) and right['RGB']>=max(right.values())
    assert not [e for e in chrome.get_log('browser') if e['level']=='SEVERE']

def test_pages_fit_on_a_phone(site, chrome):
    at,out = site
    chrome.set_window_size(390, 800)
    try:
        for p in ('index.html',*(p for p in pages(out) if p.startswith('report/'))):
            chrome.get(f'{at}/{p}')
            wide = chrome.execute_script("return document.documentElement.scrollWidth-document.documentElement.clientWidth")
            assert wide<=1, (p,wide)
    finally: chrome.set_window_size(1200, 900)
