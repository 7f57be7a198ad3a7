// Lays a map of wsi-ips over the open slide and imports its tiles as objects.
// How to run: open the slide in QuPath, drag this file onto it (or Automate > Script editor > File > Open), then Run.
// Files: beside this script, or in a folder that it asks for, stands one `*.qupath.json` a map. It says
//   slide_id, slide     what the map is of: the id in the run, and the slide's file name
//   width0, height0     px of the image as QuPath shows it: level 0, cropped to the slide's bounds where it has them
//   overlay             file name of a PNG with transparency, whose corner is the corner of that image
//   downsample          px of the image per px of the PNG; left out, the PNG is stretched over the whole image
//   objects             file name of a GeoJSON, .geojson or .geojson.gz, in px of that image; may be left out
// Running it again replaces the overlay and imports no object twice. Nothing is saved until you save in QuPath.
// Not run in our tests; written against the QuPath 0.5/0.6 API. Research use only.

import java.util.zip.GZIPInputStream
import javafx.application.Platform
import javax.imageio.ImageIO
import qupath.fx.dialogs.Dialogs
import qupath.fx.dialogs.FileChoosers
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.io.GsonTools
import qupath.lib.io.PathIO
import qupath.lib.regions.ImageRegion

import static qupath.lib.gui.scripting.QPEx.getCurrentImageData
import static qupath.lib.gui.scripting.QPEx.getCurrentViewer
import static qupath.lib.gui.scripting.QPEx.getProjectEntry

TITLE = 'wsi-ips overlay'
ENDING = '.qupath.json'

def viewer = getCurrentViewer()
def imageData = getCurrentImageData()
if (viewer == null || imageData == null) {
    Dialogs.showErrorMessage(TITLE, 'Open the slide first, then run this script again.')
    return
}
def folder = folderOfThisScript()
if (sidecarsIn(folder).isEmpty()) {
    folder = FileChoosers.promptForDirectory("Folder of the files *${ENDING}".toString(), folder)
}
if (folder == null) {
    return
}
def map = chooseMap(sidecarsIn(folder), shownNames(imageData))
if (map == null || !sizesAgree(map, imageData.getServer())) {
    return
}
def nObjects = importObjects(map, folder, imageData.getHierarchy())
def picture = ImageIO.read(new File(folder, map.overlay as String))
if (picture == null) {
    Dialogs.showErrorMessage(TITLE, "${map.overlay}: no picture that Java can read".toString())
    return
}
Platform.runLater { showOverlay(viewer, picture, map.downsample) }
println "${TITLE}: ${map.overlay} is shown, ${nObjects} objects are new"


/** Where the script was opened from; null when it was pasted into the editor. */
File folderOfThisScript() {
    try {
        def path = getProperty('qupath.script.file')  // set by QuPath since 0.4
        return path ? new File(path as String).getParentFile() : null
    } catch (MissingPropertyException ignored) {
        return null
    }
}

List<File> sidecarsIn(File folder) {
    def files = folder?.listFiles()
    return files == null ? [] : files.findAll { it.getName().endsWith(ENDING) }.sort { it.getName() }
}

/** What the image may be called: by the project, where a person can rename it, and by its file. */
List<String> shownNames(imageData) {
    def server = imageData.getServer()
    def files = server.getURIs().collect { uri -> (uri.getPath() ?: '').tokenize('/').with { it ? it.last() : '' } }
    return ([getProjectEntry()?.getImageName(), server.getMetadata().getName()] + files).findAll { it } as List<String>
}

/** The map of this slide; where several fit, or none does, a person chooses. */
Map chooseMap(List<File> sidecars, List<String> names) {
    def all = sidecars.collectEntries { file ->
        [(file.getName()): GsonTools.getInstance().fromJson(file.getText('UTF-8'), Map)]
    }
    def fitting = all.findAll { name, map ->
        names.any { it == map.slide || it == map.slide_id || it.startsWith("${map.slide_id}.") }
    }
    if (all.isEmpty()) {
        Dialogs.showErrorMessage(TITLE, "No file *${ENDING} here; give the folder that wsi-ips wrote.".toString())
        return null
    }
    if (fitting.size() == 1) {
        return fitting.values().first()
    }
    def offered = fitting.isEmpty() ? all : fitting
    def question = fitting.isEmpty() ? "No map here is of ${names.first()}. Show one all the same?" : 'Which map?'
    def chosen = Dialogs.showChoiceDialog(TITLE, question.toString(), offered.keySet() as List, offered.keySet().first())
    return chosen == null ? null : offered[chosen]
}

/** Ask before something is drawn at a wrong place: another slide, another level, or another crop. */
boolean sizesAgree(Map map, server) {
    if (map.width0 == null || map.height0 == null) {
        return Dialogs.showConfirmDialog(TITLE, 'The file does not say the size of its slide. Go on unchecked?')
    }
    def width = Math.round(map.width0 as double), height = Math.round(map.height0 as double)
    if (server.getWidth() == width && server.getHeight() == height) {
        return true
    }
    def message = "QuPath shows ${server.getWidth()} x ${server.getHeight()} px, the map was made for ${width} x ${height} px.\n" +
        'Either this is another slide, or QuPath shows another resolution, or it crops the slide differently ' +
        '(an image opened with --no-crop is not cropped to its bounds): overlay and objects would be misplaced.\n\n' +
        'Go on all the same?'
    return Dialogs.showConfirmDialog(TITLE, message.toString())
}

/** Add what is not there yet, told by its id; returns how many. */
int importObjects(Map map, File folder, hierarchy) {
    if (!map.objects) {
        return 0
    }
    def file = new File(folder, map.objects as String)
    if (!file.isFile()) {
        Dialogs.showErrorMessage(TITLE, "${map.objects}: not found; only the overlay is shown".toString())
        return 0
    }
    def found = file.withInputStream { raw ->
        PathIO.readObjectsFromGeoJSON(file.getName().endsWith('.gz') ? new GZIPInputStream(raw) : raw)
    }
    def known = hierarchy.getFlattenedObjectList(null).collect { it.getID() } as Set
    def fresh = found.findAll { !known.contains(it.getID()) }
    hierarchy.addObjects(fresh)
    return fresh.size()
}

/** Runs on the JavaFX thread. The overlay leaves by itself when another image is opened in the viewer. */
void showOverlay(viewer, picture, downsample) {
    def overlay = new BufferedImageOverlay(viewer, picture)  // over the whole image
    if (downsample != null) {
        // the last px of the PNG may reach beyond the image: it is placed by its px, not by the image's edge
        def step = downsample as double
        def width = Math.round(picture.getWidth() * step) as int, height = Math.round(picture.getHeight() * step) as int
        def region = ImageRegion.createInstance(0, 0, width, height, viewer.getZPosition(), viewer.getTPosition())
        overlay.getRegionMap().clear()
        overlay.getRegionMap().put(region, picture)
    }
    viewer.setCustomPixelLayerOverlay(overlay)
    viewer.getOverlayOptions().setShowPixelClassification(true)  // else it is not painted
    viewer.repaint()
}
